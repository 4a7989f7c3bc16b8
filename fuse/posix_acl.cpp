#include "fuse/posix_acl.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <tuple>

namespace lamina::unionfs {
namespace {

constexpr std::uint32_t kXattrVersion = 2;
constexpr std::size_t kHeaderBytes = 4;
constexpr std::size_t kEntryBytes = 8;

template <class Number>
Number load(std::string_view bytes, std::size_t offset) {
    static_assert(std::endian::native == std::endian::little);
    Number number = 0;
    std::memcpy(&number, bytes.data() + offset, sizeof number);
    return number;
}

}  // namespace

Result<PosixAcl> PosixAcl::parse(std::string_view value) {
    if (value.size() < kHeaderBytes || (value.size() - kHeaderBytes) % kEntryBytes != 0) return fail(EINVAL);
    if (load<std::uint32_t>(value, 0) != kXattrVersion) return fail(EOPNOTSUPP);
    PosixAcl acl;
    for (std::size_t at = kHeaderBytes; at < value.size(); at += kEntryBytes)
        acl.entries_.push_back({.tag = load<std::uint16_t>(value, at),
                                .permissions = load<std::uint16_t>(value, at + 2),
                                .id = load<std::uint32_t>(value, at + 4)});
    if (!acl.is_empty() && !acl.is_sound()) return fail(EINVAL);
    return acl;
}

bool PosixAcl::is_sound() const noexcept {
    const auto count = [this](Tag tag) { return std::ranges::count(entries_, tag, &AclEntry::tag); };
    const bool has_named = count(user) + count(group) > 0;
    const auto key = [](const AclEntry& entry) {
        return std::tuple(entry.tag, entry.tag == user || entry.tag == group ? entry.id : 0);
    };
    const auto is_known = [](const AclEntry& entry) {
        return entry.permissions <= 7 && std::has_single_bit(entry.tag) && entry.tag <= other;
    };
    const bool is_in_order = std::ranges::is_sorted(entries_, {}, &AclEntry::tag);
    auto keys = entries_;
    std::ranges::sort(keys, {}, key);
    const bool has_twin = std::ranges::adjacent_find(keys, {}, key) != keys.end();
    return std::ranges::all_of(entries_, is_known) && is_in_order && !has_twin && count(user_obj) == 1 &&
           count(group_obj) == 1 && count(other) == 1 && (!has_named || count(mask) == 1);
}

std::string PosixAcl::text() const {
    std::string value(kHeaderBytes + entries_.size() * kEntryBytes, '\0');
    std::memcpy(value.data(), &kXattrVersion, sizeof kXattrVersion);
    for (std::size_t at = 0; at < entries_.size(); ++at) {
        char* const out = value.data() + kHeaderBytes + at * kEntryBytes;
        std::memcpy(out, &entries_[at].tag, 2);
        std::memcpy(out + 2, &entries_[at].permissions, 2);
        std::memcpy(out + 4, &entries_[at].id, 4);
    }
    return value;
}

PosixAcl::AclEntry* PosixAcl::find(Tag tag) noexcept {
    const auto found = std::ranges::find(entries_, tag, &AclEntry::tag);
    return found == entries_.end() ? nullptr : &*found;
}

bool PosixAcl::is_only_mode() const noexcept {
    return entries_.size() == 3;
}

std::uint32_t PosixAcl::mode_with(std::uint32_t mode) const noexcept {
    const AclEntry* const group_class = find(mask) ? find(mask) : find(group_obj);
    return (mode & ~0777U) | static_cast<std::uint32_t>(find(user_obj)->permissions << 6) |
           static_cast<std::uint32_t>(group_class->permissions << 3) | find(other)->permissions;
}

void PosixAcl::set_mode(std::uint32_t mode) noexcept {
    find(user_obj)->permissions = (mode >> 6) & 7;
    (find(mask) ? find(mask) : find(group_obj))->permissions = (mode >> 3) & 7;
    find(other)->permissions = mode & 7;
}

std::uint32_t PosixAcl::inherit(std::uint32_t mode) noexcept {
    const std::uint32_t both = mode & (mode_with(0) | ~0777U);
    set_mode(both);
    return both;
}

}  // namespace lamina::unionfs
