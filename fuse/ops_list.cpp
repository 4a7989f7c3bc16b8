#include "fuse/libfuse.h"
#include "fuse/op_boundary.h"
#include "fuse/ops.h"

#include <algorithm>
#include <string>
#include <vector>

namespace lamina::unionfs {
namespace {

constexpr std::size_t kListingLimitBytes = 256 * 1024;

struct stat type_and_number(const ListedEntry& entry) {
    struct stat result {};
    result.st_ino = entry.number;
    result.st_mode = entry.type;
    return result;
}

Result<std::string> list(fuse_req_t request, fuse_ino_t directory, std::uint64_t cookie, std::size_t room) {
    std::string packed;
    packed.resize(std::min(room, kListingLimitBytes));
    std::size_t used = 0;
    std::string name;  // The name of a ListedEntry is not NUL-terminated.
    const auto done = union_of(request).list(directory, cookie, [&](const ListedEntry& entry) {
        name.assign(entry.name);
        const struct stat attributes = type_and_number(entry);
        const std::size_t left = packed.size() - used;
        const std::size_t needed = ::fuse_add_direntry(request, packed.data() + used, left, name.c_str(), &attributes,
                                                       static_cast<off_t>(entry.next_cookie));
        if (needed > left) return false;
        used += needed;
        return true;
    });
    if (!done) return std::unexpected(done.error());
    packed.resize(used);
    return packed;
}

void op_readdir(fuse_req_t request, fuse_ino_t directory, std::size_t room, off_t cookie, fuse_file_info*) {
    std::string packed;
    answer(request, [&]() -> Result<DataBytes> {
        auto listed = list(request, directory, static_cast<std::uint64_t>(cookie), room);
        if (!listed) return std::unexpected(listed.error());
        packed = std::move(*listed);
        return DataBytes{std::as_bytes(std::span(packed))};
    });
}

struct Listed {
    std::string name;
    std::uint64_t number = 0;
    std::uint32_t type = 0;
    std::uint64_t next_cookie = 0;
};

std::size_t plus_size(const Listed& entry) {
    return ::fuse_add_direntry_plus(nullptr, nullptr, 0, entry.name.c_str(), nullptr, 0);
}

bool is_dot(const std::string& name) {
    return name == "." || name == "..";
}

// The names first, then a look-up of each: list() may hold the union's lock while it emits. A name that went in
// between is listed without attributes, as readdir would have.
Result<std::vector<Listed>> list_names(UnionFs& fs, fuse_ino_t directory, std::uint64_t cookie, std::size_t room) {
    std::vector<Listed> names;
    std::size_t used = 0;
    const auto done = fs.list(directory, cookie, [&](const ListedEntry& entry) {
        Listed listed{std::string(entry.name), entry.number, entry.type, entry.next_cookie};
        used += plus_size(listed);
        if (used > room) return false;
        names.push_back(std::move(listed));
        return true;
    });
    if (!done) return std::unexpected(done.error());
    return names;
}

fuse_entry_param plus_entry(MountContext& context, fuse_ino_t directory, const Listed& name) {
    if (!is_dot(name.name)) {
        const auto found = context.fs->lookup(directory, name.name);
        if (found && *found) return to_entry_param(context, **found);
    }
    fuse_entry_param without{};  // ino 0: the kernel takes the name only.
    without.attr.st_ino = name.number;
    without.attr.st_mode = name.type;
    return without;
}

Result<std::string> list_plus(fuse_req_t request, fuse_ino_t directory, std::uint64_t cookie, std::size_t room) {
    UnionFs& fs = union_of(request);
    room = std::min(room, kListingLimitBytes);
    const auto names = list_names(fs, directory, cookie, room);
    if (!names) return std::unexpected(names.error());
    std::string packed;
    packed.resize(room);
    std::size_t used = 0;
    for (const auto& name : *names) {
        const fuse_entry_param entry = plus_entry(context_of(request), directory, name);
        used += ::fuse_add_direntry_plus(request, packed.data() + used, room - used, name.name.c_str(), &entry,
                                         static_cast<off_t>(name.next_cookie));
    }
    packed.resize(used);
    return packed;
}

void op_readdirplus(fuse_req_t request, fuse_ino_t directory, std::size_t room, off_t cookie, fuse_file_info*) {
    std::string packed;
    answer(request, [&]() -> Result<DataBytes> {
        auto listed = list_plus(request, directory, static_cast<std::uint64_t>(cookie), room);
        if (!listed) return std::unexpected(listed.error());
        packed = std::move(*listed);
        return DataBytes{std::as_bytes(std::span(packed))};
    });
}

}  // namespace

void add_listing_operations(fuse_lowlevel_ops& table) {
    table.readdir = op_readdir;
    table.readdirplus = op_readdirplus;
}

}  // namespace lamina::unionfs
