// The table's commands as system calls on paths below a folder.
#include "fuse/union_table.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <stdio.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <map>
#include <set>

namespace lamina::test {
namespace {

std::string answer(long result) {
    return errno_name(result < 0 ? errno : 0);
}

/// Bytes written, or the error.
std::string count_answer(ssize_t count) {
    return count < 0 ? errno_name(errno) : std::to_string(count);
}

std::string joined(const std::set<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
    return text;
}

std::string content_of(int fd) {
    std::string content;
    char buffer[4096];
    for (ssize_t count = 0;; content.append(buffer, static_cast<std::size_t>(count))) {
        count = ::pread(fd, buffer, sizeof buffer, static_cast<off_t>(content.size()));
        if (count < 0) return errno_name(errno);
        if (count == 0) break;
    }
    std::ranges::replace(content, '\0', '.');
    return content;
}

class Fd {
public:
    Fd(const std::string& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0644)) {}
    ~Fd() {
        const int kept = errno;
        if (fd_ >= 0) ::close(fd_);
        errno = kept;
    }
    Fd(const Fd&) = delete;
    Fd& operator=(const Fd&) = delete;
    int get() const { return fd_; }

private:
    int fd_;
};

}  // namespace

FolderTarget::~FolderTarget() {
    for (const auto& [name, fd] : open_) ::close(fd);
}

std::string FolderTarget::run(const Words& words) {
    return (this->*commands().at(words[0]))(words);
}

const std::map<std::string, FolderTarget::Command>& FolderTarget::commands() {
    static const std::map<std::string, Command> commands = {
        {"create", &FolderTarget::make},    {"mkdir", &FolderTarget::make},        {"symlink", &FolderTarget::make},
        {"mkfifo", &FolderTarget::make},    {"link", &FolderTarget::make},         {"unlink", &FolderTarget::remove},
        {"rmdir", &FolderTarget::remove},   {"rename", &FolderTarget::rename},     {"write", &FolderTarget::write},
        {"append", &FolderTarget::write},   {"truncate", &FolderTarget::change},   {"chmod", &FolderTarget::change},
        {"punch", &FolderTarget::allocate}, {"zero", &FolderTarget::allocate},     {"grow", &FolderTarget::allocate},
        {"setxattr", &FolderTarget::xattr}, {"removexattr", &FolderTarget::xattr}, {"getxattr", &FolderTarget::xattr},
        {"xattrs", &FolderTarget::xattr},   {"read", &FolderTarget::read},         {"readlink", &FolderTarget::read},
        {"list", &FolderTarget::list},      {"type", &FolderTarget::stat},         {"mode", &FolderTarget::stat},
        {"nlink", &FolderTarget::stat},     {"size", &FolderTarget::stat},         {"same", &FolderTarget::stat},
        {"hole", &FolderTarget::seek},      {"data", &FolderTarget::seek},         {"open", &FolderTarget::handle},
        {"close", &FolderTarget::handle},   {"hread", &FolderTarget::handle},      {"hwrite", &FolderTarget::handle},
        {"hnlink", &FolderTarget::handle},  {"chown", &FolderTarget::change},      {"look", &FolderTarget::times},
        {"moved", &FolderTarget::times},
    };
    return commands;
}

std::string FolderTarget::make(const Words& words) {
    const std::string at = path(words[1]);
    if (words[0] == "mkdir") return answer(::mkdir(at.c_str(), 0755));
    if (words[0] == "symlink") return answer(::symlink(words[2].c_str(), at.c_str()));
    if (words[0] == "mkfifo") return answer(::mkfifo(at.c_str(), 0644));
    if (words[0] == "link") return answer(::link(at.c_str(), path(words[2]).c_str()));
    const Fd file(at, O_WRONLY | O_CREAT | O_EXCL);
    if (file.get() < 0) return answer(-1);
    const auto count = ::write(file.get(), words[2].data(), words[2].size());
    return count == static_cast<ssize_t>(words[2].size()) ? "ok" : answer(-1);
}

std::string FolderTarget::remove(const Words& words) {
    const std::string at = path(words[1]);
    return answer(words[0] == "rmdir" ? ::rmdir(at.c_str()) : ::unlink(at.c_str()));
}

std::string FolderTarget::rename(const Words& words) {
    const unsigned flags = words.size() < 4 ? 0 : words[3] == "exchange" ? RENAME_EXCHANGE : RENAME_NOREPLACE;
    return answer(::renameat2(AT_FDCWD, path(words[1]).c_str(), AT_FDCWD, path(words[2]).c_str(), flags));
}

std::string FolderTarget::write(const Words& words) {
    const bool is_append = words[0] == "append";
    const Fd file(path(words[1]), O_WRONLY | (is_append ? O_APPEND : 0));
    if (file.get() < 0) return answer(-1);
    const std::string& text = words.back();
    if (is_append) return count_answer(::write(file.get(), text.data(), text.size()));
    return count_answer(::pwrite(file.get(), text.data(), text.size(), std::stol(words[2])));
}

std::string FolderTarget::allocate(const Words& words) {
    const Fd file(path(words[1]), O_WRONLY);
    if (file.get() < 0) return answer(-1);
    if (words[0] == "grow") return answer(::fallocate(file.get(), 0, 0, std::stol(words[2])));
    const int mode = words[0] == "punch" ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : FALLOC_FL_ZERO_RANGE;
    return answer(::fallocate(file.get(), mode, std::stol(words[2]), std::stol(words[3])));
}

std::string FolderTarget::change(const Words& words) {
    const std::string at = path(words[1]);
    if (words[0] == "truncate") return answer(::truncate(at.c_str(), std::stol(words[2])));
    if (words[0] == "chown") {
        struct stat status {};
        if (::lstat(at.c_str(), &status) != 0) return answer(-1);
        const bool changes_owner = words.size() < 3;
        return answer(::lchown(at.c_str(), changes_owner ? status.st_uid : static_cast<uid_t>(-1),
                               changes_owner ? status.st_gid : static_cast<gid_t>(-1)));
    }
    return answer(::chmod(at.c_str(), static_cast<mode_t>(std::stoul(words[2], nullptr, 8))));
}

std::string FolderTarget::read(const Words& words) {
    const std::string at = path(words[1]);
    if (words[0] == "readlink") {
        char target[4096];
        const auto count = ::readlink(at.c_str(), target, sizeof target);
        return count < 0 ? answer(-1) : std::string(target, static_cast<std::size_t>(count));
    }
    const Fd file(at, O_RDONLY);
    return file.get() < 0 ? answer(-1) : content_of(file.get());
}

std::string FolderTarget::list(const Words& words) {
    DIR* const folder = ::opendir(path(words[1]).c_str());
    if (!folder) return answer(-1);
    std::set<std::string> names;
    while (const dirent* const entry = ::readdir(folder)) {
        const std::string name = entry->d_name;
        if (name != "." && name != ".." && !names.insert(name).second) names.insert(name + " twice");
    }
    ::closedir(folder);
    return joined(names);
}

std::string FolderTarget::stat(const Words& words) {
    struct stat status {};
    if (::lstat(path(words[1]).c_str(), &status) != 0) return answer(-1);
    char octal[16];
    std::snprintf(octal, sizeof octal, "%o", status.st_mode & 07777);
    if (words[0] == "mode") return octal;
    if (words[0] == "nlink") return std::to_string(status.st_nlink);
    if (words[0] == "size") return std::to_string(status.st_size);
    if (words[0] == "same") {
        struct stat other {};
        if (::lstat(path(words[2]).c_str(), &other) != 0) return answer(-1);
        return status.st_ino == other.st_ino ? "yes" : "no";
    }
    const std::map<mode_t, std::string> types = {
        {S_IFDIR, "dir"}, {S_IFREG, "file"}, {S_IFLNK, "link"}, {S_IFIFO, "fifo"}};
    return types.at(status.st_mode & S_IFMT);
}

std::string FolderTarget::xattr(const Words& words) {
    const std::string at = path(words[1]);
    char value[65536];
    if (words[0] == "removexattr") return answer(::lremovexattr(at.c_str(), words[2].c_str()));
    if (words[0] == "setxattr") {
        const int flags = words.size() < 5 ? 0 : words[4] == "create" ? XATTR_CREATE : XATTR_REPLACE;
        return answer(::lsetxattr(at.c_str(), words[2].c_str(), words[3].data(), words[3].size(), flags));
    }
    const bool is_list = words[0] == "xattrs";
    const auto size = is_list ? ::llistxattr(at.c_str(), value, sizeof value)
                              : ::lgetxattr(at.c_str(), words[2].c_str(), value, sizeof value);
    if (size < 0) return answer(-1);
    const std::string text(value, static_cast<std::size_t>(size));
    if (!is_list) return text;
    std::set<std::string> names;
    for (std::size_t begin = 0; begin < text.size(); begin = text.find('\0', begin) + 1)
        if (const std::string name = text.c_str() + begin; name.starts_with("user.")) names.insert(name);
    return joined(names);
}

std::string FolderTarget::seek(const Words& words) {
    const Fd file(path(words[1]), O_RDONLY);
    if (file.get() < 0) return answer(-1);
    return count_answer(::lseek(file.get(), std::stol(words[2]), words[0] == "hole" ? SEEK_HOLE : SEEK_DATA));
}

std::string FolderTarget::times(const Words& words) {
    struct stat status {};
    if (::lstat(path(words[1]).c_str(), &status) != 0) return answer(-1);
    const auto time = [](const timespec& from) {
        return unionfs::Timestamp{.seconds = from.tv_sec, .nanoseconds = static_cast<std::uint32_t>(from.tv_nsec)};
    };
    const ShownTimes shown{.mtime = time(status.st_mtim), .ctime = time(status.st_ctim)};
    if (words[0] == "moved") return shown.moved_since(looks_.at(words[2]));
    looks_[words[2]] = shown;
    wait_for_tick();
    return "ok";
}

std::string FolderTarget::handle(const Words& words) {
    if (words[0] == "open") {
        const int fd = ::open(path(words[1]).c_str(), O_RDWR | O_CLOEXEC);
        if (fd < 0) return answer(-1);
        open_[words[2]] = fd;
        return "ok";
    }
    const int fd = open_.at(words[1]);
    if (words[0] == "hread") return content_of(fd);
    if (words[0] == "hwrite") return count_answer(::pwrite(fd, words[3].data(), words[3].size(), std::stol(words[2])));
    if (words[0] == "hnlink") {
        struct stat status {};
        return ::fstat(fd, &status) == 0 ? std::to_string(status.st_nlink) : answer(-1);
    }
    open_.erase(words[1]);
    return answer(::close(fd));
}

}  // namespace lamina::test
