#pragma once

#include <string>
#include <vector>

namespace lamina::client {

/// What mount(8) asks of its helper for a type: SOURCE DIR [-fnsv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]...
struct HelperCall {
    std::string source;
    std::string directory;
    std::string store, socket, name;   ///< -o store=, socket=, name=
    std::vector<std::string> options;  ///< Those that are the server's, in order.
    bool is_fake = false;              ///< -f
    bool is_read_only = false;         ///< The last one of ro and rw counts.
    bool is_remount = false;           ///< -o remount
    bool has_folders = false;          ///< -o lowerdir=: folders instead of an image of the store.
    bool is_help = false, is_version = false;
};

/// `words` without the program's name. Options for mount(8) itself, and those of systemd, are left out. Throws
/// api::FailureError "usage".
HelperCall parse_helper_call(const std::vector<std::string>& words);

/// The name of a mount that was not given one: of its folder, so that what is mounted there again has its changes.
std::string name_of_folder(const std::string& directory);

/// mount.lamina: does what a call asks. Returns the exit status: 0, 1 usage or permissions, 32 the mount failed
/// (mount(8)); then one line has gone to standard error.
int run_mount_helper(const std::vector<std::string>& words);

/// Whether `lamina` was called as mount.fuse calls the program of a type fuse.lamina: SOURCE DIR -o OPTIONS.
bool is_helper_call(const std::vector<std::string>& words);

}  // namespace lamina::client
