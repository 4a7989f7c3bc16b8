#include "store/store_folder.h"

#include "store/error.h"
#include "store/printable.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <utility>

namespace lamina::store {

namespace {

constexpr std::string_view kFormatStart = "lamina store ";
constexpr std::string_view kFormat = "lamina store 1\n";
constexpr std::uint64_t kMaxFormatBytes = 4096;

std::string usable_root(const std::string& root) {
    if (root.empty()) throw Error(Errc::malformed, "store: the path is empty");
    std::string path = std::filesystem::absolute(root).lexically_normal().string();
    while (path.size() > 1 && path.ends_with('/')) path.pop_back();
    if (path.find_first_of(":,\n") != std::string::npos) {
        throw Error(Errc::malformed,
                    "store " + store::quote(path) + ": a path with ':' or ',' cannot be a mount option");
    }
    return path;
}

bool is_unfinished_format(std::string_view name) {
    return name.starts_with("format.tmp");
}

/// What a crash at any step of making a store can have left, or what a file system of its own begins with.
bool looks_new(const std::string& root) {
    for (const std::string& name : list_folder(root)) {
        if (name != "lock" && name != "lost+found" && !is_unfinished_format(name)) return false;
    }
    return true;
}

std::string holder_of(int lock_fd) {
    std::array<char, 32> text{};
    const ssize_t size = ::pread(lock_fd, text.data(), text.size() - 1, 0);
    const long process = size > 0 ? std::atol(text.data()) : 0;
    if (process <= 0) return "another process";
    std::string name;
    std::ifstream comm("/proc/" + std::to_string(process) + "/comm");
    std::getline(comm, name);
    return "process " + std::to_string(process) + (name.empty() ? "" : " (" + name + ")");
}

UniqueFd lock_folder(const std::string& root) {
    const std::string path = root + "/lock";
    File file = File::create_or_open(path);
    if (::flock(file.fd(), LOCK_EX | LOCK_NB) != 0) {
        const int error_number = errno;
        if (error_number != EWOULDBLOCK) throw_errno(error_number, "lock " + path);
        throw Error(Errc::busy, "store " + root + ": in use by " + holder_of(file.fd()));
    }
    file.truncate(0);
    file.append(as_bytes(std::to_string(::getpid()) + "\n"));
    UniqueFd lock(::fcntl(file.fd(), F_DUPFD_CLOEXEC, 3));  // The same open file, so the same lock.
    if (!lock) throw_errno(errno, "lock " + path);
    return lock;
}

void check_format(const std::string& root) {
    const std::string path = root + "/format";
    if (!exists(path)) {
        if (!looks_new(root)) throw Error(Errc::malformed, "store " + root + ": the folder holds something else");
        if (::chmod(root.c_str(), 0700) != 0) throw_errno(errno, "chmod " + root);
        return write_file_atomically(path, as_bytes(kFormat));
    }
    const auto bytes = read_file(path, kMaxFormatBytes);
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (text == kFormat) return;
    if (!text.starts_with(kFormatStart)) throw Error(Errc::malformed, path + ": not the format file of a store");
    const std::string version = store::quote(text.substr(kFormatStart.size(), text.find('\n') - kFormatStart.size()));
    throw Error(Errc::unsupported, "store " + root + ": has format " + version +
                                       ", this program knows 1: use the version that wrote it, or another folder");
}

void empty_staging(const StorePaths& paths) {
    for (const std::string& name : list_folder(paths.staging())) remove_tree(paths.staging() + "/" + name);
    for (const std::string& name : list_folder(paths.root)) {
        if (is_unfinished_format(name)) remove_file(paths.root + "/" + name);
    }
}

/// A mount's folder is made before its base and goes after it: without one it holds nothing that anybody was promised.
void remove_half_mounts(const StorePaths& paths) {
    for (const std::string& id : list_folder(paths.mounts())) {
        if (!exists(paths.mount(id) + "/base")) remove_tree(paths.mount(id));
    }
}

}  // namespace

StoreFolder StoreFolder::open(const std::string& root) {
    StorePaths paths{usable_root(root)};
    make_folders(paths.root);
    // Before anything of ours is put there. Another daemon may be making the store: its format comes before all others.
    const auto has_format = [&] { return exists(paths.root + "/format"); };
    if (!has_format() && !looks_new(paths.root) && !has_format()) {
        throw Error(Errc::malformed, "store " + paths.root + ": the folder holds something else");
    }
    UniqueFd lock = lock_folder(paths.root);
    check_format(paths.root);
    for (const auto& folder : {paths.packs(), paths.layers(), paths.trees(), paths.mounts(), paths.staging()}) {
        make_folder(folder);
    }
    empty_staging(paths);
    remove_half_mounts(paths);
    return StoreFolder(std::move(paths), std::move(lock));
}

}  // namespace lamina::store
