#pragma once

#include "fuse/node.h"
#include "fuse/result.h"
#include "store/file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

/// The system calls by which a keeper looks at and changes an upper directory, with their error numbers as results. No
/// symlink is followed, and each name is one step from an open folder.
namespace lamina::unionfs {

/// Called before each call that changes something. For tests; none costs one load.
inline std::atomic<void (*)()> g_upper_step{nullptr};

/// A name in an open folder.
struct Spot {
    std::shared_ptr<const store::UniqueFd> folder;
    std::string name;
    int fd() const noexcept { return folder->get(); }
};

struct Owner {
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    bool operator==(const Owner&) const = default;
};

Result<store::UniqueFd> open_at(const Spot& spot, int flags);  ///< With O_NOFOLLOW and O_CLOEXEC.
Result<struct statx> status_of(const Spot& spot);
Result<struct statx> status_of(int fd);
bool exists_at(const Spot& spot);
Result<std::string> link_target_at(const Spot& spot);
Timestamp time_of(const struct statx_timestamp& time);

Result<store::UniqueFd> create_at(const Spot& spot);  ///< A new file, open for reading and writing, mode 0600.
Result<void> make_folder_at(const Spot& spot);        ///< Mode 0700.
Result<void> make_symlink_at(const Spot& spot, const std::string& target);
Result<void> make_node_at(const Spot& spot, std::uint32_t mode, std::uint64_t device);
Result<void> link_at(const Spot& from, const Spot& to);
Result<void> rename_at(const Spot& from, const Spot& to, unsigned flags = 0);  ///< RENAME_*
Result<void> unlink_at(const Spot& spot);
Result<void> remove_folder_at(const Spot& spot);

/// An inode to change, open or not (O_PATH will do).
class UpperInode {
public:
    static Result<UpperInode> open(const Spot& spot);
    explicit UpperInode(int fd);  ///< Borrows a descriptor.
    int fd() const noexcept { return fd_; }

    Result<void> set_owner(const Owner& owner) const;
    Result<void> set_mode(std::uint32_t permissions) const;
    Result<void> set_times(const std::optional<Timestamp>& atime, const std::optional<Timestamp>& mtime) const;
    Result<void> set_xattr(std::string_view name, std::string_view value) const;
    Result<void> remove_xattr(std::string_view name) const;  ///< ENODATA.
    Result<std::optional<std::string>> xattr(std::string_view name) const;

private:
    store::UniqueFd own_;
    int fd_ = -1;
    std::string path_;  // Names the inode itself, a symlink too.
};

/// Does something once more, with the owner's permissions on an inode for as long as it takes, where they were lacking:
/// a server without privilege must also change what its user has made read-only.
template <class Work>
auto with_permission(const Result<UpperInode>& inode, Work&& work) -> decltype(work()) {
    auto result = work();
    if (result || result.error() != Errno{EACCES} || !inode) return result;
    const auto status = status_of(inode->fd());
    if (!status || S_ISLNK(status->stx_mode) || !inode->set_mode(status->stx_mode | S_IRWXU)) return result;
    result = work();
    (void)inode->set_mode(status->stx_mode);
    return result;
}

/// A file of the upper, to change its bytes.
Result<std::size_t> write_at(int fd, std::uint64_t offset_bytes, std::span<const std::byte> data);  ///< Some of it.
Result<void> resize_file(int fd, std::uint64_t size_bytes);
Result<void> allocate_file(int fd, int mode, std::uint64_t offset_bytes, std::uint64_t size_bytes);
Result<void> sync_data(int fd);

}  // namespace lamina::unionfs
