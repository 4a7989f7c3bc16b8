#include "support/kept_mount.h"

#include "fuse/change_walk.h"

#include <algorithm>
#include <iomanip>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace lamina::test {

using namespace unionfs;

KeptMount::KeptMount(const std::string& folder, const View& view, const Options& options) {
    MountState::Options open{.is_read_only = options.is_read_only, .log = options.log, .boot = {}};
    open.boot.emplace();
    open.boot->fill(std::byte{options.boot});
    state_ = MountState::open(folder, tree(), view, open);
    state_->changes().on_freed([this](std::uint64_t offset_bytes, std::uint64_t size_bytes) {
        freed_.push_back({offset_bytes, size_bytes});
    });
}

store::TreeDigest KeptMount::tree() {
    return {store::Digest::of(store::as_bytes("a tree of tests"))};
}

Result<void> KeptMount::change(const change::Change& change, std::uint64_t data_bytes) {
    const bool frees = std::holds_alternative<change::Remove>(change);
    const auto room = frees ? state_->keeper().reserve_to_free(400) : state_->keeper().reserve(66'000, data_bytes);
    if (!room) return room;
    if (const auto reserved = state_->changes().reserve(change); !reserved) return reserved;
    return perform(change);
}

Result<void> KeptMount::perform(const change::Change& change) {
    {
        Arena::Transaction transaction(state_->arena());
        if (const auto applied = state_->changes().apply(change); !applied) return applied;
        state_->keeper().append(change);
        transaction.commit();
    }
    state_->keeper().appended(true);
    release();
    return {};
}

void KeptMount::release() {
    for (const auto& [offset_bytes, size_bytes] : freed_) state_->keeper().release(offset_bytes, size_bytes);
    freed_.clear();
}

Result<NodeId> KeptMount::make(NodeId parent, const std::string& name, std::uint32_t mode, const std::string& target) {
    const NodeId node = state_->changes().next_node();
    change::Make make{.parent = parent, .name = name, .node = node, .mode = mode};
    make.time = {.seconds = ++clock_, .nanoseconds = 7};
    make.link_target = target;
    if (const auto made = change(make); !made) return std::unexpected(made.error());
    return node;
}

Result<void> KeptMount::write(NodeId node, std::uint64_t offset_bytes, std::string_view data) {
    Keeper& keeper = state_->keeper();
    const auto bytes = std::as_bytes(std::span(data.data(), data.size()));
    if (const auto reserved = keeper.reserve(200, data.size()); !reserved) return reserved;
    std::uint64_t previous_end = 0;
    std::uint64_t place = 0;
    for_each_extent(state_->changes(), node, [&](const ChangedExtent& extent) {
        if (extent.is_hole) return;
        const std::uint64_t end = extent.offset_bytes + extent.size_bytes;
        if (end == offset_bytes) previous_end = extent.extent_offset_bytes + extent.size_bytes;
        const bool is_inside = extent.offset_bytes <= offset_bytes && offset_bytes + data.size() <= end;
        if (is_inside) place = extent.extent_offset_bytes + (offset_bytes - extent.offset_bytes);
    });
    bool is_placed = false;
    if (place != 0 && keeper.may_overwrite(place, data.size())) {
        const auto written = keeper.overwrite(place, bytes);
        is_placed = written.has_value();
        if (!written && written.error() != Errno{EAGAIN}) return written;
    }
    if (!is_placed) {
        const auto placed = keeper.place(bytes, previous_end);
        if (!placed) return std::unexpected(placed.error());
        place = *placed;
    }
    const change::Write change{.node = node,
                               .offset_bytes = offset_bytes,
                               .size_bytes = data.size(),
                               .extent_offset_bytes = place,
                               .time = {.seconds = ++clock_, .nanoseconds = 7}};
    if (const auto reserved = state_->changes().reserve(change); !reserved) return reserved;
    return perform(change);
}

Result<void> KeptMount::remove(NodeId parent, const std::string& name) {
    const NodeId node = node_of(parent, name);
    const auto removed = change(change::Remove{.parent = parent, .name = name, .time = {.seconds = ++clock_}});
    if (!removed || node == 0) return removed;
    const auto left = changed_node(state_->changes(), node);
    if (left && left->attributes.nlink == 0) state_->changes().drop(node);  // Nobody has it open.
    release();
    return {};
}

Result<void> KeptMount::rename(NodeId from, const std::string& name, NodeId to, const std::string& new_name) {
    return change(change::Rename{
        .old_parent = from, .old_name = name, .new_parent = to, .new_name = new_name, .time = {.seconds = ++clock_}});
}

NodeId KeptMount::node_of(NodeId parent, const std::string& name) const {
    return find_name(state_->changes(), parent, name).value().value_or(0);
}

std::string KeptMount::own_bytes(NodeId node) const {
    std::string content;
    for_each_extent(state_->changes(), node, [&](const ChangedExtent& extent) {
        if (content.size() < extent.offset_bytes + extent.size_bytes) {
            content.resize(extent.offset_bytes + extent.size_bytes, '.');
        }
        const auto out = std::span(content).subspan(extent.offset_bytes, extent.size_bytes);
        if (extent.is_hole) {
            std::fill(out.begin(), out.end(), '\0');
        } else if (!state_->keeper().load(extent.extent_offset_bytes, std::as_writable_bytes(out))) {
            throw std::runtime_error("the data of an inode cannot be read");
        }
    });
    return content;
}

namespace {

std::string quote(std::string_view text) {
    std::ostringstream out;
    out << std::quoted(std::string(text));
    return out.str();
}

std::string data_text(MountState& state, NodeId node) {
    std::ostringstream out;
    std::uint64_t end = 0;
    for_each_extent(state.changes(), node, [&](const ChangedExtent& extent) {
        std::string bytes(extent.size_bytes, '\0');
        const auto room = std::as_writable_bytes(std::span(bytes));
        if (!extent.is_hole && !state.keeper().load(extent.extent_offset_bytes, room)) bytes = "unreadable";
        if (extent.offset_bytes != end || end == 0) out << " @" << extent.offset_bytes << ":";
        out << bytes;
        end = extent.offset_bytes + extent.size_bytes;
    });
    return out.str();
}

}  // namespace

std::string text_of(MountState& state) {
    std::vector<std::string> lines;
    for_each_changed_node(state.changes(), [&](const ChangedNode& node) {
        const Attributes& attributes = node.attributes;
        if (attributes.nlink == 0) return;
        std::ostringstream out;
        out << "node " << attributes.node << " mode " << std::oct << attributes.mode << std::dec << " "
            << attributes.uid << ":" << attributes.gid << " links " << attributes.nlink << " size "
            << attributes.size_bytes << " device " << attributes.device << " times";
        for (const Timestamp& time : {attributes.atime, attributes.mtime, attributes.ctime, attributes.birth}) {
            out << " " << time.seconds << "." << time.nanoseconds;
        }
        out << " target " << quote(node.link_target) << " view " << node.view_size_bytes << node.is_new
            << node.has_own_xattrs << " data" << data_text(state, attributes.node);
        lines.push_back(out.str());
        for_each_own_xattr(state.changes(), attributes.node, [&](std::string_view name, std::string_view value) {
            lines.push_back("xattr " + std::to_string(attributes.node) + " " + quote(name) + quote(value));
        });
        if (!S_ISDIR(attributes.mode)) return;
        for_each_changed_name(state.changes(), attributes.node, [&](const ChangedName& name) {
            lines.push_back("name " + std::to_string(attributes.node) + "/" + quote(name.name) + " is " +
                            std::to_string(name.node) + (name.is_in_view ? " over the view's" : ""));
        });
    });
    std::sort(lines.begin(), lines.end());
    std::string text = "next " + std::to_string(state.changes().next_node()) + "\n";
    for (const std::string& line : lines) text += line + "\n";
    return text;
}

}  // namespace lamina::test
