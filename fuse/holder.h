#pragma once

#include "fuse/session_page.h"
#include "store/file.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace lamina::unionfs {

/// Of the server of a mount: its connection to the holder, and what former servers have left with that.
///
/// The holder has a copy of each descriptor that is needed to serve, in an order that servers agree on: kFuse, kArena,
/// kLog, then what the kind of mount needs. A server takes them all at its start.
class HolderLink {
public:
    static constexpr std::size_t kFuse = 0;   ///< /dev/fuse
    static constexpr std::size_t kArena = 1;  ///< Its session page is the holder's too.
    static constexpr std::size_t kLog = 2;    ///< Takes the holder's lines.

    HolderLink(store::UniqueFd socket, std::vector<store::UniqueFd> held)
        : socket_(std::move(socket)), held_(std::move(held)), is_first_(held_.empty()) {}

    /// Of a server without a holder: hand_over() does nothing.
    static HolderLink none() { return {store::UniqueFd(), {}}; }
    /// No server was here before: there is nothing to take, and all to hand over.
    bool is_first() const noexcept { return is_first_; }
    std::size_t held_count() const noexcept { return held_.size(); }
    /// A descriptor that was handed over. Once each.
    store::UniqueFd take(std::size_t position) { return std::move(held_.at(position)); }
    /// Leaves copies of these with the holder, which from now on starts a new server when this one dies. Throws.
    void hand_over(std::span<const int> fds) const;
    /// Asks for a new server, of this program (open for execution), in place of this one.
    void ask_for_upgrade(int program) const;
    /// Readable when the holder is gone.
    int fd() const noexcept { return socket_.get(); }

private:
    store::UniqueFd socket_;
    std::vector<store::UniqueFd> held_;
    bool is_first_;
};

/// First word of the command line of a server that an upgrade has started, with the number of handed_over(). Behind it
/// come HolderOptions::mount_folder, mountpoint and arguments.
inline constexpr const char* kHandedOverOption = "--handed-over=";
/// A server ends with this status when it cannot go on in the arena.
inline constexpr int kCannotResumeExit = 78;

struct HolderOptions {
    char** arguments = nullptr;        ///< Of main(), for a server of another program; the next two come before them.
    const char* mount_folder = "";     ///< Absolute; empty: a mount of folders.
    const char* mountpoint = "";       ///< Absolute.
    unsigned watchdog_ms = 60'000;     ///< A server that answers nothing for so long while requests wait is replaced.
    bool stays_in_foreground = false;  ///< Else standard files are let go when the mount serves.
};

/// Splits the process: what was it becomes the holder of a mount and never returns; each server of the mount, the first
/// at once, is a child of it in which this returns.
///
/// The holder starts a new server when one dies, unless that had ended the mount, or the kernel cannot hand its
/// requests on; with longer and longer pauses when new ones die too. When none can be started it ends, and with it the
/// connection: programs get ENOTCONN. SIGTERM and SIGINT let the server end the mount. It uses no memory but what it
/// has when it begins. Before any thread; its own process should have done nothing but read its options.
HolderLink hold(const HolderOptions& options);
/// The same for a server that was executed with kHandedOverOption.
HolderLink handed_over(std::size_t count);

}  // namespace lamina::unionfs
