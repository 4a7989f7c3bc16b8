#include "fuse/change.h"

#include "fuse/byte_codec.h"

#include <functional>
#include <initializer_list>
#include <limits>
#include <type_traits>

/// A change is one byte that says its kind, then its fields in the order of the struct; numbers are varints, times are
/// zigzag seconds and nanoseconds, booleans and the presence of optional fields are bits of one flag byte. There is one
/// encoding of each change: decode() accepts nothing that encode() would not write, so a flipped bit that a checksum
/// let through is still likely to be seen. Fields are walked by one function per kind, used in both directions, so that
/// reader and writer cannot differ.
namespace lamina::unionfs::change {

namespace {

constexpr std::size_t kMaxNameBytes = 255;
constexpr std::size_t kMaxXattrNameBytes = 255;
constexpr std::size_t kMaxXattrValueBytes = 65536;
constexpr std::size_t kMaxLinkTargetBytes = 4095;
constexpr std::uint64_t kMaxOffset = std::numeric_limits<std::int64_t>::max();
constexpr std::uint64_t kMaxNode = std::numeric_limits<std::int64_t>::max();
constexpr std::uint64_t kMax32 = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();

bool is_type(std::uint32_t mode) {
    switch (mode & ~07777U) {
        case S_IFREG:
        case S_IFDIR:
        case S_IFLNK:
        case S_IFCHR:
        case S_IFBLK:
        case S_IFIFO:
        case S_IFSOCK:
            return true;
        default:
            return false;
    }
}

bool is_name(std::string_view name) {
    return !name.empty() && name != "." && name != ".." && name.find('/') == name.npos && name.find('\0') == name.npos;
}

/// Writes the fields that a walk names.
class Encoder {
public:
    explicit Encoder(std::vector<std::byte>& out) : out_(out) {}
    static constexpr bool kReads = false;

    void number(std::uint64_t value, std::uint64_t) { out_.varint(value); }
    void text(std::string_view value, std::size_t) { out_.text(value); }
    void time(const Timestamp& time) {
        const auto seconds = static_cast<std::uint64_t>(time.seconds);
        out_.varint((seconds << 1) ^ (time.seconds < 0 ? kMax64 : 0));
        out_.varint(time.nanoseconds);
    }
    void flags(std::initializer_list<bool> values) {
        std::uint8_t bits = 0;
        unsigned shift = 0;
        for (const bool value : values) bits = static_cast<std::uint8_t>(bits | (unsigned{value} << shift++));
        out_.byte(bits);
    }
    void require(bool) {}

private:
    codec::Writer out_;
};

/// Fills the fields that a walk names.
class Decoder {
public:
    explicit Decoder(std::span<const std::byte> bytes) : in_(bytes) {}
    static constexpr bool kReads = true;

    template <class T>
    void number(T& value, std::uint64_t limit) {
        value = static_cast<T>(in_.varint_up_to(limit));
    }
    void text(std::string_view& value, std::size_t limit_bytes) { value = in_.text(limit_bytes); }
    void time(Timestamp& time) {
        const std::uint64_t folded = in_.varint();
        time.seconds = static_cast<std::int64_t>((folded >> 1) ^ ((folded & 1) ? kMax64 : 0));
        time.nanoseconds = static_cast<std::uint32_t>(in_.varint_up_to(999'999'999));
    }
    void flags(std::initializer_list<std::reference_wrapper<bool>> values) {
        const unsigned bits = in_.byte();
        in_.require(bits < (1U << values.size()));
        unsigned shift = 0;
        for (bool& value : values) value = ((bits >> shift++) & 1U) != 0;
    }
    void require(bool condition) { in_.require(condition); }
    codec::Reader& in() { return in_; }

private:
    codec::Reader in_;
};

// `C` is the change, const when it is written.

template <class Coder, class C>
void node(Coder& coder, C& value) {
    coder.number(value, kMaxNode);
    coder.require(value != 0);
}

template <class Coder, class C>
void name(Coder& coder, C& value) {
    coder.text(value, kMaxNameBytes);
    coder.require(is_name(value));
}

template <class Coder, class C>
void xattr_name(Coder& coder, C& value) {
    coder.text(value, kMaxXattrNameBytes);
    coder.require(!value.empty() && value.find('\0') == value.npos);
}

template <class Coder, class Mode, class Text>
void link_target(Coder& coder, const Mode& mode, Text& value) {
    coder.text(value, kMaxLinkTargetBytes);
    coder.require(value.empty() || (S_ISLNK(mode) && value.find('\0') == value.npos));
}

/// An offset and a size that stay within what a file can have.
template <class Coder, class A, class B>
void range(Coder& coder, A& offset_bytes, B& size_bytes) {
    coder.number(offset_bytes, kMaxOffset);
    coder.number(size_bytes, kMaxOffset);
    coder.require(size_bytes <= kMaxOffset - offset_bytes);
}

template <class Coder, class A, class B>
void place(Coder& coder, A& extent_offset_bytes, const B& size_bytes) {
    coder.number(extent_offset_bytes, kMaxOffset);
    coder.require(size_bytes != 0 && size_bytes <= kMaxOffset - extent_offset_bytes);
}

template <class Coder, class C>
void walk_make(Coder& coder, C& change) {
    coder.number(change.parent, kMaxNode);
    coder.text(change.name, kMaxNameBytes);
    coder.require(change.name.empty() || (change.parent != 0 && is_name(change.name)));
    node(coder, change.node);
    coder.number(change.mode, kMax32);
    coder.require(is_type(change.mode));
    coder.number(change.uid, kMax32);
    coder.number(change.gid, kMax32);
    coder.number(change.device, kMax64);
    coder.time(change.time);
    link_target(coder, change.mode, change.link_target);
    coder.text(change.access_acl, kMaxXattrValueBytes);
    coder.text(change.default_acl, kMaxXattrValueBytes);
    coder.require(change.default_acl.empty() || S_ISDIR(change.mode));
}

template <class Coder, class C>
void walk_link(Coder& coder, C& change) {
    node(coder, change.node);
    node(coder, change.parent);
    name(coder, change.name);
    coder.time(change.time);
}

template <class Coder, class C>
void walk_remove(Coder& coder, C& change) {
    node(coder, change.parent);
    name(coder, change.name);
    coder.time(change.time);
}

template <class Coder, class C>
void walk_rename(Coder& coder, C& change) {
    coder.flags({change.is_exchange});
    node(coder, change.old_parent);
    name(coder, change.old_name);
    node(coder, change.new_parent);
    name(coder, change.new_name);
    coder.time(change.time);
}

template <class Coder, class C>
void walk_resize(Coder& coder, C& change) {
    coder.flags({change.clears_privileges});
    node(coder, change.node);
    coder.number(change.size_bytes, kMaxOffset);
    coder.time(change.time);
}

template <class Coder, class C>
void walk_write(Coder& coder, C& change) {
    coder.flags({change.clears_privileges, change.is_mapped});
    node(coder, change.node);
    range(coder, change.offset_bytes, change.size_bytes);
    place(coder, change.extent_offset_bytes, change.size_bytes);
    coder.time(change.time);
}

template <class Coder, class C>
void walk_zero(Coder& coder, C& change) {
    coder.flags({change.clears_privileges});
    node(coder, change.node);
    range(coder, change.offset_bytes, change.size_bytes);
    coder.number(change.new_size_bytes, kMaxOffset);
    coder.time(change.time);
}

template <class Coder, class C>
void walk_set_xattr(Coder& coder, C& change) {
    node(coder, change.node);
    xattr_name(coder, change.name);
    coder.text(change.value, kMaxXattrValueBytes);
    coder.time(change.time);
}

template <class Coder, class C>
void walk_remove_xattr(Coder& coder, C& change) {
    node(coder, change.node);
    xattr_name(coder, change.name);
    coder.time(change.time);
}

template <class Coder, class C>
void walk_put_node(Coder& coder, C& change) {
    coder.flags({change.has_own_xattrs});
    auto& attributes = change.attributes;
    node(coder, attributes.node);
    coder.number(attributes.mode, kMax32);
    coder.require(is_type(attributes.mode));
    coder.number(attributes.uid, kMax32);
    coder.number(attributes.gid, kMax32);
    coder.number(attributes.nlink, kMax32);
    coder.number(attributes.size_bytes, kMaxOffset);
    coder.number(attributes.allocated_bytes, kMaxOffset);
    coder.number(attributes.device, kMax64);
    coder.time(attributes.atime);
    coder.time(attributes.mtime);
    coder.time(attributes.ctime);
    coder.time(attributes.birth);
    link_target(coder, attributes.mode, change.link_target);
    coder.number(change.view_size_bytes, kMaxOffset);
}

template <class Coder, class C>
void walk_put_name(Coder& coder, C& change) {
    node(coder, change.parent);
    name(coder, change.name);
    coder.number(change.node, kMaxNode);
}

template <class Coder, class C>
void walk_put_extent(Coder& coder, C& change) {
    coder.flags({change.is_hole});
    node(coder, change.node);
    range(coder, change.offset_bytes, change.size_bytes);
    coder.require(change.size_bytes != 0);
    if (!change.is_hole) place(coder, change.extent_offset_bytes, change.size_bytes);
}

template <class Coder, class C>
void walk_put_xattr(Coder& coder, C& change) {
    node(coder, change.node);
    xattr_name(coder, change.name);
    coder.text(change.value, kMaxXattrValueBytes);
}

template <class Coder, class C>
void walk_put_next_node(Coder& coder, C& change) {
    coder.number(change.next, kMaxNode);
    coder.require(change.next >= kFirstNewNode);
}

void encode_set_attributes(Encoder& coder, const SetAttributes& change) {
    coder.flags({change.mode.has_value(), change.uid.has_value(), change.gid.has_value(), change.atime.has_value(),
                 change.mtime.has_value(), change.clears_privileges});
    node(coder, change.node);
    if (change.mode) coder.number(*change.mode, 07777);
    if (change.uid) coder.number(*change.uid, kMax32);
    if (change.gid) coder.number(*change.gid, kMax32);
    if (change.atime) coder.time(*change.atime);
    if (change.mtime) coder.time(*change.mtime);
    coder.time(change.ctime);
}

void decode_set_attributes(Decoder& coder, SetAttributes& change) {
    bool has_mode = false, has_uid = false, has_gid = false, has_atime = false, has_mtime = false;
    coder.flags({has_mode, has_uid, has_gid, has_atime, has_mtime, change.clears_privileges});
    node(coder, change.node);
    if (has_mode) coder.number(change.mode.emplace(), 07777);
    if (has_uid) coder.number(change.uid.emplace(), kMax32);
    if (has_gid) coder.number(change.gid.emplace(), kMax32);
    if (has_atime) coder.time(change.atime.emplace());
    if (has_mtime) coder.time(change.mtime.emplace());
    coder.time(change.ctime);
}

template <class Coder, class C>
void walk(Coder& coder, C& change) {
    using Plain = std::remove_const_t<C>;
    if constexpr (std::is_same_v<Plain, Make>) walk_make(coder, change);
    if constexpr (std::is_same_v<Plain, Link>) walk_link(coder, change);
    if constexpr (std::is_same_v<Plain, Remove>) walk_remove(coder, change);
    if constexpr (std::is_same_v<Plain, Rename>) walk_rename(coder, change);
    if constexpr (std::is_same_v<Plain, Resize>) walk_resize(coder, change);
    if constexpr (std::is_same_v<Plain, Write>) walk_write(coder, change);
    if constexpr (std::is_same_v<Plain, Zero>) walk_zero(coder, change);
    if constexpr (std::is_same_v<Plain, SetXattr>) walk_set_xattr(coder, change);
    if constexpr (std::is_same_v<Plain, RemoveXattr>) walk_remove_xattr(coder, change);
    if constexpr (std::is_same_v<Plain, PutNode>) walk_put_node(coder, change);
    if constexpr (std::is_same_v<Plain, PutName>) walk_put_name(coder, change);
    if constexpr (std::is_same_v<Plain, PutExtent>) walk_put_extent(coder, change);
    if constexpr (std::is_same_v<Plain, PutXattr>) walk_put_xattr(coder, change);
    if constexpr (std::is_same_v<Plain, PutNextNode>) walk_put_next_node(coder, change);
    if constexpr (std::is_same_v<Plain, SetAttributes>) {
        if constexpr (Coder::kReads) {
            decode_set_attributes(coder, change);
        } else {
            encode_set_attributes(coder, change);
        }
    }
}

// The kinds are part of the format (fuse/FORMAT.md, "Changes"): an alternative keeps its number for ever.
constexpr std::uint8_t kFirstKind = 1;
static_assert(std::variant_size_v<Change> == 15);
// A new field needs its line above; this is the reminder.
static_assert(sizeof(Make) == 120 && sizeof(Link) == 48 && sizeof(Remove) == 40 && sizeof(Rename) == 72);
static_assert(sizeof(SetAttributes) == 104 && sizeof(Resize) == 40 && sizeof(Write) == 56 && sizeof(Zero) == 56);
static_assert(sizeof(SetXattr) == 56 && sizeof(RemoveXattr) == 40 && sizeof(PutNode) == 152 && sizeof(PutName) == 32);
static_assert(sizeof(PutExtent) == 40 && sizeof(PutXattr) == 40 && sizeof(PutNextNode) == 8);

template <std::size_t kIndex = 0>
bool decode_kind(std::size_t index, Decoder& coder, Change& out) {
    if constexpr (kIndex == std::variant_size_v<Change>) {
        return false;
    } else {
        if (index != kIndex) return decode_kind<kIndex + 1>(index, coder, out);
        walk(coder, out.emplace<kIndex>());
        return true;
    }
}

}  // namespace

void encode(const Change& change, std::vector<std::byte>& out) {
    out.push_back(static_cast<std::byte>(change.index() + kFirstKind));
    Encoder coder(out);
    std::visit([&](const auto& kind) { walk(coder, kind); }, change);
}

std::optional<Change> decode(std::span<const std::byte> bytes) {
    Decoder coder(bytes);
    const unsigned kind = coder.in().byte();
    std::optional<Change> change(std::in_place);
    if (kind < kFirstKind || !decode_kind(kind - kFirstKind, coder, *change)) return std::nullopt;
    if (!coder.in().ok() || !coder.in().at_end()) return std::nullopt;
    return change;
}

}  // namespace lamina::unionfs::change
