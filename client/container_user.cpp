// Numbers are never taken for names. A name must stand in its file; of lines that fit, the first counts, and lines with
// too few fields or no number where one belongs are skipped.

#include "client/container_user.h"

#include "client/api.h"
#include "client/owned_fd.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>

namespace lamina::client {

namespace {

constexpr std::size_t kMaxFileBytes = 4 << 20;
constexpr std::uint32_t kMaxId = 2'147'483'647;  // What the runtimes take.

using Fields = std::vector<std::string_view>;

Fields split(std::string_view text, char separator) {
    Fields fields;
    while (true) {
        const auto end = text.find(separator);
        fields.push_back(text.substr(0, end));
        if (end == std::string_view::npos) return fields;
        text.remove_prefix(end + 1);
    }
}

/// Nothing: not a number. A number that is out of range, or negative, is malformed.
std::optional<std::uint32_t> number_of(std::string_view text) {
    const std::string_view digits = text.starts_with('-') ? text.substr(1) : text;
    if (digits.empty() || digits.find_first_not_of("0123456789") != std::string_view::npos) return std::nullopt;
    std::uint32_t number = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
    if (parsed.ec == std::errc() && number <= kMaxId) return number;
    throw api::FailureError({"malformed", fmt::format("{} is no user or group number: 0 to {}", text, kMaxId)});
}

std::optional<std::uint32_t> id_field(const Fields& fields, std::size_t at) {
    std::uint32_t number = 0;
    const std::string_view text = fields[at];
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
    const bool is_number = parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() && number <= kMaxId;
    return is_number ? std::optional(number) : std::nullopt;
}

struct PasswdLine {
    std::string_view name;
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::string_view home;
};

template <class Fits>
std::optional<PasswdLine> first_passwd_line(std::string_view text, Fits fits) {
    for (const std::string_view line : split(text, '\n')) {
        const Fields fields = split(line, ':');
        if (fields.size() < 4) continue;
        const auto uid = id_field(fields, 2);
        const auto gid = id_field(fields, 3);
        if (!uid || !gid || !fits(fields[0], *uid)) continue;
        return PasswdLine{fields[0], *uid, *gid, fields.size() > 5 ? fields[5] : std::string_view()};
    }
    return std::nullopt;
}

struct GroupLine {
    std::string_view name;
    std::uint32_t gid = 0;
    Fields members;
};

template <class Take>
void each_group_line(std::string_view text, Take take) {
    for (const std::string_view line : split(text, '\n')) {
        const Fields fields = split(line, ':');
        if (fields.size() < 3) continue;
        if (const auto gid = id_field(fields, 2)) {
            take(GroupLine{fields[0], *gid, fields.size() > 3 ? split(fields[3], ',') : Fields()});
        }
    }
}

std::uint32_t find_group(std::string_view wanted, std::string_view text) {
    if (const auto number = number_of(wanted)) return *number;
    std::optional<std::uint32_t> found;
    each_group_line(text, [&](const GroupLine& line) {
        if (!found && line.name == wanted) found = line.gid;
    });
    if (found) return *found;
    throw api::FailureError({"not_found", fmt::format("group \"{}\" is not in the image's /etc/group", wanted)});
}

std::string read_below(int root, const char* path) {
    open_how how{};
    how.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
    how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    const OwnedFd fd(static_cast<int>(::syscall(SYS_openat2, root, path, &how, sizeof how)));
    if (!fd) {
        const bool is_absent = errno == ENOENT || errno == ENOTDIR || errno == ELOOP;
        if (is_absent) return {};
        throw api::FailureError({"unavailable", fmt::format("the image's /{}: {}", path, std::strerror(errno))});
    }
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
        throw api::FailureError({"malformed", fmt::format("the image's /{} is no regular file", path)});
    }
    std::string text;
    std::array<char, 65536> piece;
    while (text.size() <= kMaxFileBytes) {
        const ssize_t got = ::read(fd.get(), piece.data(), piece.size());
        if (got == 0) return text;
        if (got > 0) text.append(piece.data(), static_cast<std::size_t>(got));
        if (got < 0 && errno != EINTR) {
            throw api::FailureError({"unavailable", fmt::format("the image's /{}: {}", path, std::strerror(errno))});
        }
    }
    throw api::FailureError({"malformed", fmt::format("the image's /{} is longer than 4 MiB", path)});
}

}  // namespace

UserFiles read_user_files(const std::string& rootfs) {
    const OwnedFd root(::open(rootfs.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!root) throw api::FailureError({"unavailable", rootfs + ": " + std::strerror(errno)});
    return {read_below(root.get(), "etc/passwd"), read_below(root.get(), "etc/group")};
}

ContainerUser find_user(std::string_view spec, const UserFiles& files) {
    const auto colon = spec.find(':');
    const std::string_view name = spec.substr(0, colon);
    const std::string_view group = colon == std::string_view::npos ? std::string_view() : spec.substr(colon + 1);
    const auto number = name.empty() ? std::optional<std::uint32_t>(0) : number_of(name);
    const auto line = first_passwd_line(files.passwd, [&](std::string_view line_name, std::uint32_t uid) {
        return number ? uid == *number : line_name == name;
    });
    if (!line && !number) {
        throw api::FailureError({"not_found", fmt::format("user \"{}\" is not in the image's /etc/passwd", name)});
    }
    ContainerUser user;
    user.uid = line ? line->uid : *number;
    user.gid = line ? line->gid : 0;
    if (line) user.home = line->home;
    if (!group.empty()) {
        user.gid = find_group(group, files.group);
    } else if (line) {
        each_group_line(files.group, [&](const GroupLine& candidate) {
            for (const std::string_view member : candidate.members) {
                if (member == line->name) return user.groups.push_back(candidate.gid);
            }
        });
    }
    return user;
}

}  // namespace lamina::client
