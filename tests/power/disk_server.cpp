// disk_server FOLDER MOUNTPOINT BYTES: serves one file, "disk", through FUSE, for a loop device to lie on. Its content
// is FOLDER/content; each write, discard and flush that it is asked for is appended to FOLDER/events before it is
// answered (disk_events.h). Serves until it is unmounted.
#define FUSE_USE_VERSION 314

#include "power/disk_events.h"
#include "store/file.h"

#include <linux/falloc.h>
#include <sys/stat.h>

#include <fuse_lowlevel.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace lamina;
using test::DiskEvent;

constexpr fuse_ino_t kDisk = 2;
constexpr double kForEver = 86'400;

struct Disk {
    store::File content;
    store::File events;
    std::uint64_t size_bytes = 0;

    void record(const DiskEvent& event, std::span<const std::byte> data = {}) {
        const auto head = std::as_bytes(std::span(&event, 1));
        std::vector<std::byte> bytes(head.begin(), head.end());
        bytes.insert(bytes.end(), data.begin(), data.end());
        events.append(bytes);
    }
};
Disk g_disk;

struct stat attributes(fuse_ino_t ino) {
    struct stat st {};
    st.st_ino = ino;
    st.st_mode = ino == kDisk ? S_IFREG | 0600 : S_IFDIR | 0700;
    st.st_nlink = ino == kDisk ? 1 : 2;
    st.st_size = ino == kDisk ? static_cast<off_t>(g_disk.size_bytes) : 0;
    return st;
}

void op_lookup(fuse_req_t request, fuse_ino_t, const char* name) {
    if (std::string_view(name) != "disk") {
        ::fuse_reply_err(request, ENOENT);
        return;
    }
    fuse_entry_param entry{};
    entry.ino = kDisk;
    entry.attr = attributes(kDisk);
    entry.attr_timeout = entry.entry_timeout = kForEver;
    ::fuse_reply_entry(request, &entry);
}

void op_getattr(fuse_req_t request, fuse_ino_t ino, fuse_file_info*) {
    const struct stat st = attributes(ino);
    ::fuse_reply_attr(request, &st, kForEver);
}

void op_setattr(fuse_req_t request, fuse_ino_t ino, struct stat*, int, fuse_file_info*) {  // Times: of no interest.
    const struct stat st = attributes(ino);
    ::fuse_reply_attr(request, &st, kForEver);
}

void op_open(fuse_req_t request, fuse_ino_t, fuse_file_info* file) {
    file->direct_io = 1;  // Nothing may be kept back by the kernel's cache of this file.
    ::fuse_reply_open(request, file);
}

void op_read(fuse_req_t request, fuse_ino_t, std::size_t size, off_t offset, fuse_file_info*) {
    std::vector<std::byte> data(size);
    const std::size_t got = store::read_some(g_disk.content.fd(), std::uint64_t(offset), data, "content");
    ::fuse_reply_buf(request, reinterpret_cast<const char*>(data.data()), got);
}

void op_write(fuse_req_t request, fuse_ino_t, const char* bytes, std::size_t size, off_t offset, fuse_file_info*) {
    const auto data = std::as_bytes(std::span(bytes, size));
    g_disk.record({DiskEvent::kWrite, 0, std::uint64_t(offset), size}, data);
    g_disk.content.write_at(std::uint64_t(offset), data);
    ::fuse_reply_write(request, size);
}

void op_fsync(fuse_req_t request, fuse_ino_t, int, fuse_file_info*) {
    g_disk.record({DiskEvent::kFlush, 0, 0, 0});
    ::fuse_reply_err(request, 0);
}

void op_fallocate(fuse_req_t request, fuse_ino_t, int mode, off_t offset, off_t size, fuse_file_info*) {
    if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) == 0) {
        ::fuse_reply_err(request, EOPNOTSUPP);
        return;
    }
    g_disk.record({DiskEvent::kDiscard, 0, std::uint64_t(offset), std::uint64_t(size)});
    g_disk.content.punch_hole(std::uint64_t(offset), std::uint64_t(size));
    ::fuse_reply_err(request, 0);
}

fuse_lowlevel_ops operations() {
    fuse_lowlevel_ops ops{};
    ops.lookup = op_lookup;
    ops.getattr = op_getattr;
    ops.setattr = op_setattr;
    ops.open = op_open;
    ops.read = op_read;
    ops.write = op_write;
    ops.fsync = op_fsync;
    ops.fallocate = op_fallocate;
    return ops;
}

int serve(const std::string& folder, const char* mountpoint, std::uint64_t size_bytes) {
    g_disk.content = store::File::create(folder + "/content");
    g_disk.content.truncate(size_bytes);
    g_disk.events = store::File::create(folder + "/events");
    g_disk.size_bytes = size_bytes;
    std::string name = "disk_server";
    std::string option = "-oallow_other,fsname=test_disk";
    std::vector<char*> words{name.data(), option.data()};
    fuse_args arguments = FUSE_ARGS_INIT(static_cast<int>(words.size()), words.data());
    const fuse_lowlevel_ops ops = operations();
    fuse_session* const session = ::fuse_session_new(&arguments, &ops, sizeof ops, nullptr);
    if (!session || ::fuse_session_mount(session, mountpoint) != 0) return 1;
    const int result = ::fuse_session_loop(session);
    ::fuse_session_unmount(session);
    ::fuse_session_destroy(session);
    ::fuse_opt_free_args(&arguments);
    return result == 0 ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
    if (count != 4) {
        std::fprintf(stderr, "usage: disk_server FOLDER MOUNTPOINT BYTES\n");
        return 2;
    }
    try {
        return serve(words[1], words[2], std::strtoull(words[3], nullptr, 10));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "disk_server: %s\n", error.what());
        return 1;
    }
}
