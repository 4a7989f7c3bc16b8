// empty_server [--reader plain|eager] MOUNTPOINT: the least that a FUSE server can be. Names and attributes live in two
// hash tables, data is dropped (a file keeps its size and reads as zeros), nothing is kept. Transport, INIT flags and
// reading threads are those of lamina-fuse, so what it costs is what the kernel and the scheduler cost; the rest of a
// mount's time is the union's and the keeper's. One thread changes the tables: the one that reads.
#include "fuse/libfuse.h"
#include "fuse/mount_context.h"
#include "fuse/op_boundary.h"
#include "fuse/reading_threads.h"
#include "fuse/transport.h"
#include "store/error.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

using namespace lamina;

namespace {

struct Node {
    struct stat attributes {};
    std::unordered_map<std::string, fuse_ino_t> names;
    std::vector<std::string> order;  ///< Of a listing; removed names stay, and are passed over.
};

class Tables {
public:
    Tables() { make(0, "", S_IFDIR | 0755); }
    Node& at(fuse_ino_t node) { return nodes_.at(node); }
    Node* find(fuse_ino_t parent, const char* name, fuse_ino_t& node) {
        const auto& names = at(parent).names;
        const auto found = names.find(name);
        if (found == names.end()) return nullptr;
        node = found->second;
        return &at(node);
    }
    fuse_ino_t make(fuse_ino_t parent, const char* name, mode_t mode) {
        const fuse_ino_t number = next_++;
        Node& node = nodes_[number];
        node.attributes.st_ino = number;
        node.attributes.st_mode = mode;
        node.attributes.st_nlink = S_ISDIR(mode) ? 2 : 1;
        touch(node);
        if (parent == 0) return number;
        Node& folder = at(parent);
        folder.names[name] = number;
        folder.order.emplace_back(name);
        touch(folder);
        return number;
    }
    void remove(fuse_ino_t parent, const char* name) {
        Node& folder = at(parent);
        nodes_.erase(folder.names.at(name));
        folder.names.erase(name);
        touch(folder);
    }
    static void touch(Node& node) {
        ::clock_gettime(CLOCK_REALTIME, &node.attributes.st_mtim);
        node.attributes.st_ctim = node.attributes.st_mtim;
    }

private:
    std::unordered_map<fuse_ino_t, Node> nodes_;
    fuse_ino_t next_ = FUSE_ROOT_ID;
};

Tables g_tables;

fuse_entry_param entry_of(fuse_ino_t node) {
    fuse_entry_param entry{};
    entry.ino = node;
    entry.attr = g_tables.at(node).attributes;
    entry.attr_timeout = entry.entry_timeout = unionfs::kForeverSeconds;
    return entry;
}

void op_lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
    fuse_ino_t node = 0;
    fuse_entry_param entry{};
    entry.entry_timeout = unionfs::kForeverSeconds;
    if (g_tables.find(parent, name, node) != nullptr) entry = entry_of(node);
    ::fuse_reply_entry(request, &entry);
}

void op_getattr(fuse_req_t request, fuse_ino_t node, fuse_file_info*) {
    ::fuse_reply_attr(request, &g_tables.at(node).attributes, unionfs::kForeverSeconds);
}

void op_setattr(fuse_req_t request, fuse_ino_t node, struct stat* wanted, int valid, fuse_file_info*) {
    struct stat& attributes = g_tables.at(node).attributes;
    if ((valid & FUSE_SET_ATTR_MODE) != 0) {
        attributes.st_mode = (attributes.st_mode & S_IFMT) | (wanted->st_mode & 07777);
    }
    if ((valid & FUSE_SET_ATTR_UID) != 0) attributes.st_uid = wanted->st_uid;
    if ((valid & FUSE_SET_ATTR_GID) != 0) attributes.st_gid = wanted->st_gid;
    if ((valid & FUSE_SET_ATTR_SIZE) != 0) attributes.st_size = wanted->st_size;
    if ((valid & FUSE_SET_ATTR_MTIME) != 0) attributes.st_mtim = wanted->st_mtim;
    ::fuse_reply_attr(request, &attributes, unionfs::kForeverSeconds);
}

void op_mknod(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode, dev_t) {
    const fuse_entry_param entry = entry_of(g_tables.make(parent, name, mode));
    ::fuse_reply_entry(request, &entry);
}

void op_mkdir(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode) {
    op_mknod(request, parent, name, S_IFDIR | mode, 0);
}

void op_remove(fuse_req_t request, fuse_ino_t parent, const char* name) {
    fuse_ino_t node = 0;
    const bool is_there = g_tables.find(parent, name, node) != nullptr;
    if (is_there) g_tables.remove(parent, name);
    ::fuse_reply_err(request, is_there ? 0 : ENOENT);
}

void op_rename(fuse_req_t request, fuse_ino_t from, const char* old_name, fuse_ino_t to, const char* new_name,
               unsigned) {
    fuse_ino_t node = 0;
    if (g_tables.find(from, old_name, node) == nullptr) {
        ::fuse_reply_err(request, ENOENT);
        return;
    }
    g_tables.at(from).names.erase(old_name);
    g_tables.at(to).names[new_name] = node;
    g_tables.at(to).order.emplace_back(new_name);
    for (const fuse_ino_t folder : {from, to}) Tables::touch(g_tables.at(folder));
    ::fuse_reply_err(request, 0);
}

void op_write(fuse_req_t request, fuse_ino_t node, const char*, std::size_t size_bytes, off_t offset, fuse_file_info*) {
    Node& file = g_tables.at(node);
    file.attributes.st_size = std::max(file.attributes.st_size, offset + static_cast<off_t>(size_bytes));
    Tables::touch(file);
    ::fuse_reply_write(request, size_bytes);
}

void op_read(fuse_req_t request, fuse_ino_t node, std::size_t size_bytes, off_t offset, fuse_file_info*) {
    const off_t left = std::max<off_t>(g_tables.at(node).attributes.st_size - offset, 0);
    const std::vector<char> zeros(std::min(size_bytes, static_cast<std::size_t>(left)));
    ::fuse_reply_buf(request, zeros.data(), zeros.size());
}

template <bool kWithAttributes>
void op_list(fuse_req_t request, fuse_ino_t node, std::size_t room, off_t cookie, fuse_file_info*) {
    const Node& folder = g_tables.at(node);
    std::vector<char> packed(room);
    std::size_t used = 0;
    for (auto at = static_cast<std::size_t>(cookie); at < folder.order.size(); ++at) {
        const auto found = folder.names.find(folder.order[at]);
        if (found == folder.names.end()) continue;
        char* const to = packed.data() + used;
        const std::size_t left = room - used;
        const auto next = static_cast<off_t>(at + 1);
        const fuse_entry_param entry = entry_of(found->second);
        const std::size_t needed =
            kWithAttributes ? ::fuse_add_direntry_plus(request, to, left, found->first.c_str(), &entry, next)
                            : ::fuse_add_direntry(request, to, left, found->first.c_str(), &entry.attr, next);
        if (needed > left) break;
        used += needed;
    }
    ::fuse_reply_buf(request, packed.data(), used);
}

fuse_lowlevel_ops operations() {
    const auto never_again = [](fuse_req_t request, fuse_ino_t, fuse_file_info*) { ::fuse_reply_err(request, ENOSYS); };
    fuse_lowlevel_ops table{};
    table.open = table.opendir = table.flush = never_again;
    table.lookup = op_lookup;
    table.getattr = op_getattr;
    table.setattr = op_setattr;
    table.mknod = op_mknod;
    table.mkdir = op_mkdir;
    table.unlink = table.rmdir = op_remove;
    table.rename = op_rename;
    table.write = op_write;
    table.read = op_read;
    table.readdir = op_list<false>;
    table.readdirplus = op_list<true>;
    table.getxattr = [](fuse_req_t request, fuse_ino_t, const char*, std::size_t) {
        ::fuse_reply_err(request, ENODATA);
    };
    return table;
}

unionfs::QuietReader reader_of(const std::string& word) {
    if (word == "plain") return unionfs::QuietReader::never;
    return word == "eager" ? unionfs::QuietReader::eagerly : unionfs::QuietReader::when_it_pays;
}

}  // namespace

int main(int argc, char** argv) {
    const bool names_reader = argc == 4 && std::string(argv[1]) == "--reader";
    if (argc != 2 && !names_reader) {
        std::fprintf(stderr, "usage: empty_server [--reader plain|eager|when-it-pays] MOUNTPOINT\n");
        return 2;
    }
    try {
        const fuse_lowlevel_ops table = operations();
        const auto arena = unionfs::Arena::create();  // For the session page.
        if (!arena) lamina::store::throw_errno(std::to_underlying(arena.error()), "arena");
        unionfs::MountContext context;
        unionfs::Transport transport(
            {.operations = table,
             .raw = [](unionfs::MountContext&, const unionfs::RawRequest&) { return false; },
             .done_before = [](unionfs::MountContext&, const unionfs::RawRequest&, std::uint64_t) {}},
            **arena, context);
        context.transport = &transport;
        unionfs::ReadingThreads readers(transport, reader_of(names_reader ? argv[2] : ""));
        transport.mount({.mountpoint = argv[argc - 1], .source = "empty", .allows_others = true});
        readers.start();
        readers.join();
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "empty_server: %s\n", error.what());
        return 1;
    }
}
