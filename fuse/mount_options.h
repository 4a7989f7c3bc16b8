#pragma once

#include "fuse/quota.h"
#include "fuse/reading_threads.h"
#include "fuse/stack_options.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lamina::unionfs {

/// The command line of lamina-fuse, checked.
struct ServerOptions {
    enum class Action { serve, stats, stop, sync, upgrade, quota, diff, export_layer, version, help };
    Action action = Action::serve;
    std::string mount_folder;  ///< --state: <store root>/mounts/<id>. Empty: a mount of folders.
    StackMountOptions stack;   ///< Of one of folders.
    std::string mountpoint;
    bool has_two_places = false;                           ///< A source stood before the mount point.
    bool stays_in_foreground = false;                      ///< -f, -d
    bool is_debug = false;                                 ///< -d
    bool is_forced = false;                                ///< --force: stop also when files are open.
    bool is_read_only = false;                             ///< -o ro; the mount's base may say so too.
    bool allows_devices = false;                           ///< -o dev
    bool allows_set_id = true;                             ///< -o nosuid takes it away; ordinary users never have it.
    QuietReader quiet_reader = QuietReader::when_it_pays;  ///< -o reader=auto|plain|eager
    std::uint64_t cache_bytes = std::uint64_t{8} << 20;  ///< -o cache=8M
    unsigned watchdog_ms = 60'000;                         ///< -o watchdog=SECONDS: see HolderOptions. 0: never.
    bool allows_resend = true;                             ///< -o resend=off: as on a kernel that cannot.
    std::optional<QuotaLimits> quota;                      ///< -o quota=; with Action::quota: the new one.
    std::vector<std::string> mount_flags;                  ///< noexec, noatime: the kernel's.
    std::vector<std::string> warnings;                     ///< Unknown -o options, one line each.
};

/// Throws store::Error(malformed) with one line on a wrong command line. `arguments` is without the program's name.
ServerOptions parse_server_options(const std::vector<std::string>& arguments);

/// "64M" and the like: a number with an optional K, M or G (of 1024). Throws malformed.
std::uint64_t parse_size(const std::string& text);

extern const char* const kServerHelp;

}  // namespace lamina::unionfs
