#pragma once

#include "fuse/node.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace lamina::test {

/// A file system as plainly as it can be said: what the union is compared with. Errors are error numbers, 0 is done.
class ModelFs {
public:
    struct Node {
        std::uint32_t mode = 0;
        std::uint32_t uid = 0;
        std::uint32_t gid = 0;
        std::uint32_t nlink = 0;
        unionfs::Timestamp atime;
        unionfs::Timestamp mtime;
        unionfs::Timestamp ctime;
        std::string content;  ///< Of a file; the target of a symlink.
        std::map<std::string, std::string> xattrs;
        std::map<std::string, std::shared_ptr<Node>> children;
        Node* parent = nullptr;  ///< Of folders.
        unionfs::NodeId number = 0;
        bool is_directory() const { return S_ISDIR(mode); }
        bool is_file() const { return S_ISREG(mode); }
    };
    using Handle = std::shared_ptr<Node>;

    ModelFs() {
        root = std::make_shared<Node>();
        root->mode = S_IFDIR | 0755;
        root->nlink = 2;
        root->parent = root.get();
        root->number = unionfs::kRootNode;
    }
    Handle root;
    unionfs::Timestamp now;

    int make(Node& parent, const std::string& name, std::uint32_t mode, const std::string& target, Handle& made);
    int link(const Handle& node, Node& parent, const std::string& name);
    int unlink(Node& parent, const std::string& name);
    int rmdir(Node& parent, const std::string& name);
    struct Place {
        Node* parent = nullptr;
        std::string name;
    };
    int rename(const Place& from, const Place& to, bool no_replace, bool exchange);
    int truncate(Node& node, std::uint64_t size);
    int write(Node& node, std::uint64_t offset, const std::string& bytes);
    int zero(Node& node, std::uint64_t offset, std::uint64_t size, bool keeps_size);
    int set_xattr(Node& node, const std::string& name, const std::string& value, int flags);
    int remove_xattr(Node& node, const std::string& name);
    void chmod(Node& node, std::uint32_t mode);
    void chown(Node& node, std::uint32_t uid, std::uint32_t gid);

private:
    static Handle child(const Node& parent, const std::string& name);
    static bool lies_in(const Node* node, const Node* ancestor);
    void touch(Node& node);
    void take_link(Node& parent, Node& node);
};

}  // namespace lamina::test
