#pragma once

#include "fuse/node.h"
#include "fuse/result.h"
#include "store/file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// What is asked of the folders of a stack: each thing by the descriptor of the folder that it lies in and one name, so
/// that no symlink is ever followed and no path leads anywhere else. An empty name is the descriptor itself, which may
/// be O_PATH. Errors are errno; what a folder does not hold any more is ENOENT, ENOTDIR, ELOOP or EXDEV as it comes.
namespace lamina::unionfs::layer {

struct Stat {
    std::uint64_t device = 0;  ///< Of the file system.
    std::uint64_t inode = 0;
    std::uint64_t birth_mark = 0;  ///< The birth time as one number: a reused inode number has another. 0: not known.
    std::uint32_t mode = 0;
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::uint32_t nlink = 0;
    std::uint64_t size_bytes = 0;
    std::uint64_t allocated_bytes = 0;
    std::uint64_t special = 0;  ///< dev_t of device nodes.
    Timestamp atime;
    Timestamp mtime;
    Timestamp ctime;
    Timestamp birth;  ///< The mtime where the file system does not know.

    bool is_whiteout() const noexcept { return S_ISCHR(mode) && special == 0; }
};

Result<Stat> stat_of(int folder_fd, std::string_view name);
/// openat2 of one name, O_CLOEXEC and O_NOFOLLOW added; never across a mount. For what is no symlink: ELOOP.
Result<store::UniqueFd> open_in(int folder_fd, std::string_view name, int flags);
inline Result<store::UniqueFd> open_folder(int folder_fd, std::string_view name) {
    return open_in(folder_fd, name, O_PATH | O_DIRECTORY);
}
/// A regular file's descriptor for reading; does not wait for a fifo, nor change the access time where that is allowed.
Result<store::UniqueFd> open_file(int folder_fd, std::string_view name);

struct Listed {
    std::string_view name;  ///< Never "." or "..".
    std::uint64_t inode = 0;
    std::uint32_t type = 0;  ///< S_IFMT bits.
};
Result<void> list_folder(int folder_fd, const std::function<Result<void>(const Listed&)>& emit);

/// Names of the attributes, as they are; none where there cannot be any.
Result<std::vector<std::string>> xattr_names(int folder_fd, std::string_view name);
/// nullopt: not there.
Result<std::optional<std::string>> xattr(int folder_fd, std::string_view name, std::string_view xattr_name);
Result<std::string> link_target(int folder_fd, std::string_view name);

/// The UUID by which overlayfs names the file system; nullopt: it does not tell. Of a folder.
std::optional<std::array<std::uint8_t, 16>> file_system_uuid(int folder_fd);
/// A mount of the folder for us alone, without what is mounted below it; what the folder is where that is not allowed.
store::UniqueFd private_mount(store::UniqueFd folder);

}  // namespace lamina::unionfs::layer
