#include "fuse/overlay_format.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <string>

namespace lamina::unionfs {
namespace {

constexpr std::uint8_t kHandleVersion = 0;
constexpr std::uint8_t kHandleMagic = 0xfb;
constexpr std::uint8_t kIsBigEndian = 1;
constexpr std::uint8_t kIsAnyEndian = 2;
constexpr std::string_view kEscape = "overlay.";

constexpr std::array<std::string_view, 2> kPrefixes{OverlayXattrs::kTrusted, OverlayXattrs::kUser};
constexpr std::string_view kFuseOverlayPrefix = "user.fuseoverlayfs.";

template <class Number>
std::optional<Number> parse_number(std::string_view text, int base = 10) {
    Number number{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, base);
    if (error != std::errc{} || end != text.data() + text.size() || text.empty()) return std::nullopt;
    return number;
}

template <class Number>
Number number_at(const std::vector<std::byte>& bytes, std::size_t offset) {
    Number number{};
    std::memcpy(&number, bytes.data() + offset, sizeof number);
    return number;
}

std::string_view cut(std::string_view& rest, char separator) {
    const std::size_t end = std::min(rest.find(separator), rest.size());
    const std::string_view part = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    return part;
}

/// "block-8-0" or "block:8:0" behind the word; 0:0 when nothing follows.
std::optional<std::uint64_t> parse_device(std::string_view text) {
    if (text.empty()) return 0;
    const char separator = text.front();
    if (separator != '-' && separator != ':') return std::nullopt;
    text.remove_prefix(1);
    const auto major = parse_number<std::uint32_t>(cut(text, separator));
    const auto minor = parse_number<std::uint32_t>(text);
    if (!major || !minor) return std::nullopt;
    return gnu_dev_makedev(*major, *minor);
}

bool parse_type(std::string_view text, OverriddenStat& out) {
    struct Word {
        std::string_view text;
        std::uint32_t type;
    };
    constexpr std::array<Word, 5> kWords{
        {{"dir", S_IFDIR}, {"file", S_IFREG}, {"symlink", S_IFLNK}, {"pipe", S_IFIFO}, {"socket", S_IFSOCK}}};
    constexpr std::array<Word, 2> kDevices{{{"block", S_IFBLK}, {"char", S_IFCHR}}};
    const auto* const word = std::ranges::find(kWords, text, &Word::text);
    if (word != kWords.end()) {
        out.mode |= word->type;
        return true;
    }
    const auto* const device =
        std::ranges::find_if(kDevices, [&](const Word& one) { return text.starts_with(one.text); });
    if (device == kDevices.end()) return false;
    const auto number = parse_device(text.substr(device->text.size()));
    if (!number) return false;
    out.mode |= device->type;
    out.device = *number;
    return true;
}

}  // namespace

bool is_private_xattr(std::string_view name) noexcept {
    return std::ranges::any_of(kPrefixes, [&](std::string_view prefix) { return name.starts_with(prefix); }) ||
           name.starts_with(kFuseOverlayPrefix);
}

std::optional<std::string> shown_xattr_name(std::string_view stored) {
    for (const std::string_view prefix : kPrefixes) {
        if (!stored.starts_with(prefix)) continue;
        const std::string_view rest = stored.substr(prefix.size());
        if (!rest.starts_with(kEscape)) return std::nullopt;
        return std::string(prefix).append(rest.substr(kEscape.size()));
    }
    if (is_private_xattr(stored)) return std::nullopt;
    return std::string(stored);
}

std::string stored_xattr_name(std::string_view shown) {
    for (const std::string_view prefix : kPrefixes)
        if (shown.starts_with(prefix)) return std::string(prefix).append(kEscape).append(shown.substr(prefix.size()));
    return std::string(shown);
}

// File handles: struct ovl_fb is version, magic, length of all, flags, type (a byte each), UUID (16), handle.

std::string FileHandle::bytes() const {
    std::string value;
    value.reserve(kHeaderBytes + handle.size());
    constexpr std::uint8_t kEndian = std::endian::native == std::endian::big ? kIsBigEndian : 0;
    for (const std::uint8_t byte :
         {kHandleVersion, kHandleMagic, static_cast<std::uint8_t>(kHeaderBytes + handle.size()),
          static_cast<std::uint8_t>(kEndian | (is_upper ? kIsUpper : 0)), type})
        value.push_back(static_cast<char>(byte));
    for (const std::uint8_t byte : file_system) value.push_back(static_cast<char>(byte));
    for (const std::byte byte : handle) value.push_back(static_cast<char>(byte));
    return value;
}

std::string FileHandle::index_name() const {
    std::string name;
    for (const char byte : bytes()) name += fmt::format("{:02x}", static_cast<unsigned char>(byte));
    return name;
}

std::optional<FileHandle> FileHandle::parse(std::string_view value) {
    if (value.size() <= kHeaderBytes || value.size() > kHeaderBytes + kMaxHandleBytes) return std::nullopt;
    const auto byte_at = [&](std::size_t offset) { return static_cast<std::uint8_t>(value[offset]); };
    if (byte_at(0) != kHandleVersion || byte_at(1) != kHandleMagic || byte_at(2) != value.size()) return std::nullopt;
    const std::uint8_t flags = byte_at(3);
    const bool is_big = std::endian::native == std::endian::big;
    if (!(flags & kIsAnyEndian) && ((flags & kIsBigEndian) != 0) != is_big) return std::nullopt;
    FileHandle parsed;
    parsed.is_upper = (flags & kIsUpper) != 0;
    parsed.type = byte_at(4);
    for (std::size_t at = 0; at < parsed.file_system.size(); ++at) parsed.file_system[at] = byte_at(5 + at);
    for (const char byte : value.substr(kHeaderBytes)) parsed.handle.push_back(static_cast<std::byte>(byte));
    return parsed;
}

std::optional<std::uint64_t> FileHandle::inode() const {
    constexpr std::uint8_t kIno32 = 1;  // ext4 and others: inode, generation. tmpfs, of 12 bytes: hash, inode.
    constexpr std::uint8_t kIno32Parent = 2;
    constexpr std::uint8_t kBtrfs = 0x4d;  // Object, root, generation.
    constexpr std::uint8_t kXfs = 0x81;    // 64-bit inode, generation.
    const std::size_t size = handle.size();
    if (type == kIno32 && size == 12)
        return number_at<std::uint32_t>(handle, 4) | std::uint64_t{number_at<std::uint32_t>(handle, 8)} << 32;
    if ((type == kIno32 || type == kIno32Parent) && size >= 8) return number_at<std::uint32_t>(handle, 0);
    if ((type == kBtrfs && size >= 20) || (type == kXfs && size >= 12)) return number_at<std::uint64_t>(handle, 0);
    return std::nullopt;
}

std::optional<FileHandle> file_handle_of(int folder_fd, std::string_view name) {
    alignas(file_handle) std::array<std::byte, sizeof(file_handle) + FileHandle::kMaxHandleBytes> room{};
    auto* const handle = static_cast<file_handle*>(static_cast<void*>(room.data()));
    handle->handle_bytes = FileHandle::kMaxHandleBytes;
    int mount = 0;
    const std::string path(name);
    if (::name_to_handle_at(folder_fd, path.c_str(), handle, &mount, path.empty() ? AT_EMPTY_PATH : 0) != 0)
        return std::nullopt;
    FileHandle made;
    made.type = static_cast<std::uint8_t>(handle->handle_type);
    if (handle->handle_type > UINT8_MAX || handle->handle_bytes > FileHandle::kMaxHandleBytes) return std::nullopt;
    const std::byte* const begin = room.data() + sizeof(file_handle);
    made.handle.assign(begin, begin + handle->handle_bytes);
    return made;
}

// Values.

std::optional<std::uint32_t> parse_nlink(std::string_view value, std::uint32_t upper_nlink, std::uint32_t lower_nlink) {
    if (value.size() < 3 || (value[0] != 'U' && value[0] != 'L') || (value[1] != '+' && value[1] != '-'))
        return std::nullopt;
    const auto difference = parse_number<std::uint32_t>(value.substr(2));
    if (!difference) return std::nullopt;
    const std::int64_t base = value[0] == 'U' ? upper_nlink : lower_nlink;
    const std::int64_t count = value[1] == '+' ? base + *difference : base - *difference;
    if (count <= 0 || count > INT32_MAX) return std::nullopt;
    return static_cast<std::uint32_t>(count);
}

std::optional<Redirect> parse_redirect(std::string_view value) {
    Redirect parsed;
    parsed.is_absolute = value.starts_with('/');
    if (parsed.is_absolute) value.remove_prefix(1);
    while (true) {
        const std::size_t end = std::min(value.find('/'), value.size());
        const std::string_view name = value.substr(0, end);
        if (name.empty() || name == "." || name == ".." || name.size() > 255 || name.contains('\0'))
            return std::nullopt;
        parsed.names.emplace_back(name);
        if (end == value.size()) break;
        value.remove_prefix(end + 1);
    }
    if (!parsed.is_absolute && parsed.names.size() != 1) return std::nullopt;
    return parsed;
}

std::optional<OverriddenStat> parse_override_stat(std::string_view value) {
    if (value.ends_with('\0')) value.remove_suffix(1);
    const auto uid = parse_number<std::uint32_t>(cut(value, ':'));
    const auto gid = parse_number<std::uint32_t>(cut(value, ':'));
    const auto mode = parse_number<std::uint32_t>(cut(value, ':'), 8);
    if (!uid || !gid || !mode) return std::nullopt;
    OverriddenStat stat{.uid = *uid, .gid = *gid, .mode = *mode & 07777};
    if (!value.empty() && !parse_type(value, stat)) return std::nullopt;
    return stat;
}

std::string override_stat_text(const OverriddenStat& stat) {
    std::string text = fmt::format("{}:{}:{:o}", stat.uid, stat.gid, stat.mode & 07777);
    const auto device = [&](std::string_view word) {
        return fmt::format(":{}-{}-{}", word, gnu_dev_major(stat.device), gnu_dev_minor(stat.device));
    };
    switch (stat.mode & S_IFMT) {
        case S_IFDIR:
            return text + ":dir";
        case S_IFREG:
            return text + ":file";
        case S_IFLNK:
            return text + ":symlink";
        case S_IFIFO:
            return text + ":pipe";
        case S_IFSOCK:
            return text + ":socket";
        case S_IFBLK:
            return text + device("block");
        case S_IFCHR:
            return text + device("char");
        default:
            return text;
    }
}

}  // namespace lamina::unionfs
