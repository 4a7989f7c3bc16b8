#pragma once

#include "fuse/change_set_records.h"

#include <map>
#include <string>
#include <vector>

namespace lamina::test {

/// Checks that the records of a change set fit together; returns what does not.
class Soundness {
public:
    explicit Soundness(const unionfs::ChangeSet& changes) : records_(changes.records()) {}

    /// `counts_links`: also that link counts are right and each folder has a place, which a checkpoint from outside may
    /// get wrong.
    std::vector<std::string> problems(bool counts_links = true) {
        using namespace unionfs;
        is_strict_ = counts_links;
        records_.inodes().for_each([&](Ref<InodeRecord> ref) {
            const InodeRecord& inode = records_.arena().get(ref);
            if (records_.find_inode(inode.node) != ref) note(inode, "is not found, or twice");
            count(inode);
            if (inode.is_directory())
                check_directory(inode);
            else
                check_file(inode);
        });
        if (name_count_ != records_.names().size()) problems_.push_back("names outside of folders");
        if (data_bytes_ != records_.set().data_bytes) problems_.push_back("a wrong account of data");
        if (metadata_bytes_ != records_.set().metadata_bytes) problems_.push_back("a wrong account of metadata");
        if (counts_links) check_links();
        return problems_;
    }

private:
    void note(const unionfs::InodeRecord& inode, const std::string& what) {
        problems_.push_back(std::to_string(inode.node) + ": " + what);
    }
    void count(const unionfs::InodeRecord& inode) {
        using namespace unionfs;
        data_bytes_ += (inode.own_bytes + 4095) / 4096 * 4096;
        for (Ref<XattrRecord> at = inode.xattrs; at; at = records_.arena().get(at).next)
            metadata_bytes_ += records_.arena().get(at).name().size() + records_.arena().get(at).value().size();
        if (inode.link_target) metadata_bytes_ += records_.arena().get(inode.link_target).text().size();
    }
    void check_directory(const unionfs::InodeRecord& directory) {
        using namespace unionfs;
        std::uint32_t whiteouts = 0;
        std::uint32_t added = 0;
        std::uint64_t last_key = 0;
        for (ArenaTree::Cursor at(records_.names_of(directory), 0); at.get(); at.next()) {
            const Ref<NameRecord> ref{static_cast<std::uint32_t>(at.get()->first)};
            const NameRecord& name = records_.arena().get(ref);
            if (at.get()->key <= last_key) note(directory, "names out of order");
            last_key = at.get()->key;
            if (name.parent != directory.node || name.sequence != at.get()->key) note(directory, "a name of others");
            if (records_.find_name(directory.node, name.name()) != ref) note(directory, "a name that is not found");
            whiteouts += name.node == 0;
            added += !name.is_in_view();
            ++name_count_;
            metadata_bytes_ += name.name().size();
            check_target(directory, name);
        }
        if (whiteouts != directory.whiteout_count || added != directory.added_count) note(directory, "wrong counts");
        if (directory.nlink > 0) check_way_up(directory);
    }
    void check_target(const unionfs::InodeRecord& directory, const unionfs::NameRecord& name) {
        if (name.node == 0) {
            if (!name.is_in_view()) note(directory, "a whiteout over nothing");
            return;
        }
        const auto target = records_.attributes(name.node);
        if (!target || target->nlink == 0)
            note(directory, "names a removed inode");
        else if ((target->mode & S_IFMT) != name.type)
            note(directory, "a name of the wrong type");
        ++links_[name.node];
        if (target && S_ISDIR(target->mode)) ++folders_[directory.node];
    }
    void check_way_up(const unionfs::InodeRecord& directory) {
        unionfs::NodeId at = directory.node;
        for (int steps = 0; at != unionfs::kRootNode; ++steps) {
            const auto parent = records_.parent(at);
            if (parent && *parent == 0 && !is_strict_) return;
            if (!parent || *parent == 0 || steps > 1000) return note(directory, "does not lead up to the root");
            at = *parent;
        }
    }
    void check_file(const unionfs::InodeRecord& file) {
        if (!S_ISREG(file.mode)) return;
        std::uint64_t bytes = 0;
        std::uint64_t end = 0;
        records_.extents(file).for_each([&](const unionfs::Extent& extent) {
            if (extent.offset_bytes < end || extent.size_bytes == 0) note(file, "extents overlap");
            end = extent.end_bytes();
            if (end > (extent.is_hole ? file.view_size_bytes : file.size_bytes)) note(file, "an extent past the end");
            bytes += extent.is_hole ? 0 : extent.size_bytes;
        });
        if (bytes != file.own_bytes) note(file, "wrong count of bytes");
        if (file.view_size_bytes > file.size_bytes) note(file, "shows more of the view than it has");
    }
    void check_links() {
        using namespace unionfs;
        records_.inodes().for_each([&](Ref<InodeRecord> ref) {
            const InodeRecord& inode = records_.arena().get(ref);
            if (!inode.is_new()) return;
            const std::uint64_t links = links_.contains(inode.node) ? links_[inode.node] : 0;
            const std::uint64_t right = inode.is_directory() ? (links == 0 ? 0 : 2 + folders_[inode.node]) : links;
            if (inode.nlink != right) note(inode, "wrong link count");
        });
    }

    const unionfs::ChangeSet::Records& records_;
    std::vector<std::string> problems_;
    std::uint64_t name_count_ = 0;
    std::uint64_t data_bytes_ = 0;
    std::uint64_t metadata_bytes_ = 0;
    bool is_strict_ = true;
    std::map<unionfs::NodeId, std::uint64_t> links_;
    std::map<unionfs::NodeId, std::uint64_t> folders_;
};

}  // namespace lamina::test
