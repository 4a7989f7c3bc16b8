#include "fuse/dir_listing.h"

namespace lamina::unionfs {
namespace {

constexpr std::uint64_t kDotCookie = 1;
constexpr std::uint64_t kDotDotCookie = 2;

}  // namespace

void DirectoryRun::add(std::string_view name, NodeId node, std::uint64_t number, std::uint32_t type) {
    entries_.push_back({.name_offset = names_.size(),
                        .name_bytes = name.size(),
                        .node = node,
                        .number = number != 0 ? number : node,
                        .type = type,
                        .next_cookie = cookie_});
    names_ += name;
}

Result<void> DirectoryRun::add_record(const ChangeSet::Records& records, const NameRecord& name) {
    const auto number = records.number(name.node);
    if (!number) return std::unexpected(number.error());
    add(name.name(), name.node, *number, name.type);
    return {};
}

Result<void> DirectoryRun::fill(const ChangeSet::Records& records, NodeId directory, std::uint64_t cookie,
                                std::size_t limit) {
    names_.clear();
    entries_.clear();
    cookie_ = cookie;
    seen_ = 0;
    is_last_ = false;
    if (cookie_ < kDotCookie) {
        const auto number = records.number(directory);
        if (!number) return std::unexpected(number.error());
        cookie_ = kDotCookie;
        add(".", directory, *number, S_IFDIR);
    }
    if (cookie_ < kDotDotCookie) {
        const auto parent = records.parent(directory);
        if (!parent) return std::unexpected(parent.error());
        const NodeId above = *parent == 0 ? directory : *parent;
        const auto number = records.number(above);
        if (!number) return std::unexpected(number.error());
        cookie_ = kDotDotCookie;
        add("..", above, *number, S_IFDIR);
    }
    if (cookie_ < kAdded)
        if (const auto filled = fill_from_view(records, directory, limit); !filled) return filled;
    if (cookie_ >= kAdded) return fill_from_records(records, directory, limit);
    return {};
}

Result<void> DirectoryRun::fill_from_view(const ChangeSet::Records& records, NodeId directory, std::size_t limit) {
    if (directory < kFirstNewNode) {
        const auto count = records.view().entry_count(directory);
        if (!count) return std::unexpected(count.error());
        const InodeRecord* const inode = records.inode(directory);
        const bool has_records = inode && inode->tree.item_count > 0;
        for (std::uint64_t position = cookie_ - kDotDotCookie; position < *count; ++position) {
            if (seen_++ == limit) return {};
            const auto entry = records.view().entry(directory, static_cast<std::uint32_t>(position));
            if (!entry) return std::unexpected(entry.error());
            cookie_ = kDotDotCookie + position + 1;
            const auto own = has_records ? records.find_name(directory, entry->name) : Ref<NameRecord>{};
            if (!own) {
                add(entry->name, entry->node, entry->number, entry->type);
                continue;
            }
            const NameRecord& name = records.arena().get(own);
            if (name.node == 0) continue;
            if (const auto added = add_record(records, name); !added) return added;
        }
    }
    cookie_ = kAdded;
    return {};
}

Result<void> DirectoryRun::fill_from_records(const ChangeSet::Records& records, NodeId directory, std::size_t limit) {
    const InodeRecord* const inode = records.inode(directory);
    if (inode && inode->is_directory()) {
        for (ArenaTree::Cursor at(records.names_of(*inode), cookie_ - kAdded + 1); at.get(); at.next()) {
            if (at.get()->key >= NameRecord::kInView) break;  // Those have come with the view's.
            if (seen_++ == limit) return {};
            const auto& name = records.arena().get(Ref<NameRecord>{static_cast<std::uint32_t>(at.get()->first)});
            cookie_ = kAdded + at.get()->key;
            if (const auto added = add_record(records, name); !added) return added;
        }
    }
    is_last_ = true;
    return {};
}

bool DirectoryRun::emit(const std::function<bool(const ListedEntry&)>& emit) {
    for (const Copied& entry : entries_) {
        const ListedEntry listed{.name = std::string_view(names_).substr(entry.name_offset, entry.name_bytes),
                                 .node = entry.node,
                                 .number = entry.number,
                                 .type = entry.type,
                                 .next_cookie = entry.next_cookie};
        if (!emit(listed)) return false;
    }
    return true;
}

}  // namespace lamina::unionfs
