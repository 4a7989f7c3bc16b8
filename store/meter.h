#pragma once

#include "store/progress.h"

#include <cstdint>
#include <mutex>
#include <string>

namespace lamina::store {

/// Tells how far a job is: about once per MiB, and when something begins or ends. Its parts run side by side; what is
/// done of all of them together never shrinks. Borrows the function. Thread-safe.
class Meter {
public:
    explicit Meter(const ProgressFunction& function) : function_(function) {}
    void expect(std::uint64_t total_bytes);  ///< 0, as at first: not known.
    void begin(const std::string& phase, const std::string& item);

    /// One part of the total. One thread.
    class Part {
    public:
        struct What {
            std::string phase;
            std::string item;
            std::uint64_t item_total_bytes = 0;  ///< 0: not known.
        };
        Part(Meter& meter, What what);
        void reach(std::uint64_t done_bytes);  ///< So much of it is done.

    private:
        Meter& meter_;
        const What what_;
        std::uint64_t done_bytes_ = 0;
    };

private:
    void advance(std::uint64_t bytes, const Part::What& what, std::uint64_t item_done_bytes);
    void report(const Part::What& what, std::uint64_t item_done_bytes);

    const ProgressFunction& function_;
    std::mutex mutex_;  // Guards all below, and keeps calls of the function apart.
    std::uint64_t total_bytes_ = 0;
    std::uint64_t done_bytes_ = 0;
    std::uint64_t reported_bytes_ = 0;
};

}  // namespace lamina::store
