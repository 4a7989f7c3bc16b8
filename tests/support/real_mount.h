#pragma once

#include "support/mini_store.h"
#include "support/temp_dir.h"

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace lamina::test {

/// What a program did.
struct Ran {
    int exit_code = -1;
    std::string output;  ///< Standard output and error, mixed.
};
Ran run_program(const std::vector<std::string>& words);

/// False, with a warning that shows in the report, where no FUSE mount can be made: no /dev/fuse, or not permitted.
bool can_mount();

/// An image, and the real lamina-fuse serving it. Unmounts, by force where needed, when it is destroyed.
class RealMount {
public:
    struct Options {
        bool is_read_only = false;
        std::vector<std::string> arguments;  ///< Further ones for lamina-fuse.
    };
    explicit RealMount(const std::string& layer_tar);
    RealMount(const std::string& layer_tar, const Options& options);
    ~RealMount();
    RealMount(const RealMount&) = delete;
    RealMount& operator=(const RealMount&) = delete;

    std::string operator/(const std::string& name) const { return mountpoint_ + "/" + name; }
    const std::string& mountpoint() const noexcept { return mountpoint_; }
    const std::string& folder() const noexcept { return folder_; }
    const std::string& store_root() const noexcept { return store_.root(); }

    /// Starts a server again after unmount(), stop() or kill(). The constructor has started the first.
    void start();
    Ran try_start(const std::vector<std::string>& more = {});
    void unmount();             ///< umount(2); returns when the server is gone.
    void kill_all(int signal);  ///< Holder and server. Returns when they are gone; detaches what dead ones left.
    void wait_until_gone();     ///< The server's lock is free. Fails the test after 20 s.
    bool is_mounted() const;
    std::string stats() const;  ///< The JSON line.
    pid_t server() const;       ///< The process that serves.
    pid_t holder() const;
    std::uint64_t number_of(const std::string& member) const;      ///< In stats().
    Ran lamina_fuse(const std::vector<std::string>& words) const;  ///< With --state.

    using Counts = std::map<std::string, std::uint64_t>;
    Counts counts() const;  ///< Requests by kind.
    /// Requests that `work` causes, by kind; without "total".
    template <class Work>
    Counts requests_of(Work&& work) const {
        const Counts before = counts();
        work();
        Counts after = counts();
        Counts difference;
        for (const auto& [kind, count] : after) {
            const auto old = before.find(kind);
            const std::uint64_t more = count - (old == before.end() ? 0 : old->second);
            if (more != 0 && kind != "total" && kind != "forget" && kind != "batch_forget") difference[kind] = more;
        }
        return difference;
    }

private:
    TempDir temp_;
    MiniStore store_;
    Options options_;
    std::string folder_;
    std::string mountpoint_;
};

std::uint64_t total(const RealMount::Counts& counts);
std::string text_of(const RealMount::Counts& counts);

}  // namespace lamina::test
