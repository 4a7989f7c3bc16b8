#pragma once

#include "e2e/differential/program.h"

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace lamina::test::differential {

/// One of a program's processes: makes its calls, relative to the working folder, and says what each answered: an
/// errno's name, "ok", or text without anything that two file systems may do differently (inode numbers, times).
///
/// H is a slot for a descriptor, M one for a mapping; both belong to one process. FLAGS are words joined by commas.
///
///     open H P FLAGS MODE   tmpfile H P FLAGS MODE   linkfd H P           close H      dup H H2
///     read H N   pread H OFFSET N   write H SEED N   pwrite H OFFSET SEED N   lseek H OFFSET set|cur|end
///     ftruncate H SIZE   fallocate H MODE OFFSET N   seek H OFFSET data|hole   fsync H   fdatasync H
///     copyrange H OFFSET H2 OFFSET N   sendfile H H2 OFFSET N   map M H   mstore M OFFSET SEED N   mload M OFFSET N
///     unmap M    flock H sh|ex|un   setlk H rd|wr|un OFFSET N
///     stat P   lstat P   fstat H   access P MODE   readlink P   cat P   list P   truncate P SIZE
///     rename P Q FLAGS   link P Q FLAGS   symlink TARGET P   unlink P   rmdir P   mkdir P MODE   mknod P TYPE MODE
///     bind P   umask MODE   chdir P   getcwd
///     chmod P MODE   fchmod H MODE   chown P UID GID   lchown P UID GID   fchown H UID GID
///     utimens P ATIME MTIME FLAGS   futimens H ATIME MTIME        (a time: now, omit, or SECONDS.NANOSECONDS)
///     setxattr P NAME VALUE FLAGS   lsetxattr   fsetxattr H ...   getxattr P NAME   lgetxattr   fgetxattr
///     listxattr P   llistxattr   flistxattr   removexattr P NAME   lremovexattr   fremovexattr
///     diropen H P   dirread H   dirend H       dirend says whether the listing was right, whatever changed meanwhile
///     dirrewind H                              the listing begins anew
///     openat H D P FLAGS MODE   mkdirat D P MODE   unlinkat D P dir|-   renameat D P D2 Q FLAGS   linkat D P D2 Q
///     symlinkat TARGET D P   fchdir D          D: the slot of a folder, wherever that is by now
///     dread H OFFSET N   dwrite H OFFSET SEED N     whole blocks; the only ones for a descriptor of O_DIRECT
class Actor {
public:
    /// `program` must outlive it.
    explicit Actor(const Program& program) : program_(program) {}
    ~Actor();
    Actor(const Actor&) = delete;
    Actor& operator=(const Actor&) = delete;
    std::string run(std::size_t call_index);

private:
    using Words = std::vector<std::string>;
    using Function = std::string (Actor::*)(const Words&);
    struct Mapping {
        void* address = nullptr;
        std::size_t size_bytes = 0;
        int fd = -1;
        bool is_writable = false;
    };
    struct Listing {
        std::size_t begun_at = 0;  ///< Index of the call.
        std::vector<std::string> before;
        std::vector<std::string> seen;
        bool is_checked = false;
    };

    static const std::map<std::string, Function>& table();
    static void add_file_calls(std::map<std::string, Function>& table);
    static void add_name_calls(std::map<std::string, Function>& table);
    static void add_attribute_calls(std::map<std::string, Function>& table);
    static void add_folder_calls(std::map<std::string, Function>& table);
    int fd(const std::string& slot) const;
    std::string put(const std::string& slot, int fd);

    // calls_files.cpp
    std::string open(const Words& words);
    std::string tmpfile(const Words& words);
    std::string linkfd(const Words& words);
    std::string close(const Words& words);
    std::string dup(const Words& words);
    std::string read(const Words& words);
    std::string pread(const Words& words);
    std::string write(const Words& words);
    std::string pwrite(const Words& words);
    std::string lseek(const Words& words);
    std::string ftruncate(const Words& words);
    std::string fallocate(const Words& words);
    std::string seek(const Words& words);
    std::string fsync(const Words& words);
    std::string fdatasync(const Words& words);
    std::string copyrange(const Words& words);
    std::string sendfile(const Words& words);
    std::string map(const Words& words);
    std::string mstore(const Words& words);
    std::string mload(const Words& words);
    std::string unmap(const Words& words);
    std::string dread(const Words& words);
    std::string dwrite(const Words& words);
    std::string flock(const Words& words);
    std::string setlk(const Words& words);
    // calls_names.cpp
    std::string rename(const Words& words);
    std::string link(const Words& words);
    std::string symlink(const Words& words);
    std::string unlink(const Words& words);
    std::string rmdir(const Words& words);
    std::string mkdir(const Words& words);
    std::string mknod(const Words& words);
    std::string bind(const Words& words);
    std::string umask(const Words& words);
    std::string chdir(const Words& words);
    std::string getcwd(const Words& words);
    std::string readlink(const Words& words);
    std::string cat(const Words& words);
    std::string list(const Words& words);
    std::string truncate(const Words& words);
    std::string diropen(const Words& words);
    std::string dirread(const Words& words);
    std::string dirend(const Words& words);
    // calls_folders.cpp
    std::string openat(const Words& words);
    std::string mkdirat(const Words& words);
    std::string unlinkat(const Words& words);
    std::string renameat(const Words& words);
    std::string linkat(const Words& words);
    std::string symlinkat(const Words& words);
    std::string fchdir(const Words& words);
    std::string dirrewind(const Words& words);
    // calls_attributes.cpp
    std::string stat(const Words& words);
    std::string access(const Words& words);
    std::string chmod(const Words& words);
    std::string chown(const Words& words);
    std::string utimens(const Words& words);
    std::string set_xattr(const Words& words);
    std::string get_xattr(const Words& words);
    std::string list_xattr(const Words& words);
    std::string remove_xattr(const Words& words);

    const Program& program_;
    std::size_t at_ = 0;  ///< Index of the call that runs.
    std::map<std::string, int> fds_;
    std::map<std::string, Mapping> mappings_;
    std::map<std::string, Listing> listings_;
};

std::string answer_of(long result);             ///< "ok", or the name of errno.
std::string digest_of(std::string_view bytes);  ///< Length and a hash.
std::uint64_t number_word(const std::string& word);
std::uint32_t octal_word(const std::string& word);
int flags_word(const std::string& word);           ///< Of open(2), rename and the others, by name.
std::vector<std::string> names_in(int directory);  ///< Sorted, with a letter for the type; reads on from its position.
std::vector<std::string> names_of(int directory);  ///< Sorted, from the beginning; one "/": it cannot be listed.

}  // namespace lamina::test::differential
