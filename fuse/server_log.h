#pragma once

#include "store/guarded.h"

#include <cstdint>
#include <string>
#include <string_view>

namespace lamina::unionfs {

/// What goes wrong in one mount, a line each, with the time: <mount folder>/server.log. When it is full, it becomes
/// server.log.old and a new one begins: never more than twice kLimitBytes. Thread-safe. A log that cannot be written
/// (full disk) loses lines and disturbs nobody.
class ServerLog {
public:
    static constexpr std::uint64_t kLimitBytes = 256 * 1024;
    static constexpr std::size_t kLineLimitBytes = 1024;

    /// Empty path: lines go to standard error, for a server in the foreground.
    explicit ServerLog(std::string path) : path_(std::move(path)) {}
    void line(std::string_view text) noexcept;

private:
    void append(std::string_view text);

    std::string path_;
    store::Guarded<std::uint64_t> written_;  ///< Lines that were written; the lock orders writers.
};

}  // namespace lamina::unionfs
