#include "support/random_folder.h"

#include "store/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>

namespace lamina::test {

std::string RandomFolder::path(int depth) {
    constexpr std::array<const char*, 6> kNames{"a", "b", "c", "d", "e", "long name.with dots"};
    std::string made = root_;
    for (int level = 0; level < depth; ++level) made += std::string("/") + kNames[pick(kNames.size())];
    return made;
}

/// A path that is there, if a few guesses find one.
std::string RandomFolder::existing() {
    struct stat st {};
    for (int guess = 0; guess < 20; ++guess) {
        std::string at = any_path();
        if (::lstat(at.c_str(), &st) == 0) return at;
    }
    return any_path();
}

void RandomFolder::write_file(const std::string& at, bool appends) {
    const store::UniqueFd fd(::open(at.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644));
    if (!fd) return;
    const std::string text(pick(9000), static_cast<char>('a' + pick(26)));
    const off_t hole = pick(3) == 0 ? 8192 + pick(100000) : 0;
    static_cast<void>(::lseek(fd.get(), hole, appends ? SEEK_END : SEEK_SET));
    static_cast<void>(!::write(fd.get(), text.data(), text.size()));
}

void RandomFolder::change_names(std::uint32_t kind) {
    const std::string at = any_path();
    switch (kind) {
        case 0:
            ::mkdir(at.c_str(), 0755 - pick(2) * 055);
            break;
        case 1:
            write_file(at, false);
            break;
        case 2:
            static_cast<void>(!::symlink("../a/b", at.c_str()));
            break;
        case 3:
            ::mknod(at.c_str(), pick(2) == 0 ? S_IFIFO | 0644 : S_IFCHR | 0600, ::makedev(1, 3));
            break;
        case 4:
        case 5:
            static_cast<void>(std::rename(existing().c_str(), at.c_str()));
            break;
        case 6:
            ::renameat2(AT_FDCWD, existing().c_str(), AT_FDCWD, existing().c_str(), RENAME_EXCHANGE);
            break;
        case 7:
            if (makes_links_) static_cast<void>(!::link(existing().c_str(), at.c_str()));
            break;
        default: {
            const std::string gone = existing();
            std::error_code ignored;
            if (::unlink(gone.c_str()) != 0 && pick(2) == 0) std::filesystem::remove_all(gone, ignored);
        }
    }
}

void RandomFolder::change_inode(std::uint32_t kind) {
    const std::string at = existing();
    switch (kind) {
        case 0:
            ::fchmodat(AT_FDCWD, at.c_str(), pick(2) == 0 ? 0700 : 04711, 0);
            break;
        case 1:
            static_cast<void>(!::lchown(at.c_str(), pick(100), pick(100)));
            break;
        case 2:
            ::lsetxattr(at.c_str(), "user.one", at.data(), at.size() % 10, 0);
            break;
        case 3:
            ::lsetxattr(at.c_str(), "trusted.two", "2", 1, 0);
            break;
        case 4: {
            const std::array<timespec, 2> times{{{1, 2}, {static_cast<time_t>(pick(1 << 30)), 999999999}}};
            ::utimensat(AT_FDCWD, at.c_str(), times.data(), AT_SYMLINK_NOFOLLOW);
            break;
        }
        case 5: {
            struct stat st {};
            if (::lstat(at.c_str(), &st) == 0 && S_ISREG(st.st_mode))
                static_cast<void>(!::truncate(at.c_str(), pick(20000)));
            break;
        }
        default: {
            struct stat st {};
            if (::lstat(at.c_str(), &st) == 0 && S_ISREG(st.st_mode)) write_file(at, true);
        }
    }
}

void RandomFolder::step() {
    if (pick(5) < 3) {
        change_names(pick(9));
    } else {
        change_inode(pick(7));
    }
}

void RandomFolder::change(int steps) {
    for (int count = 0; count < steps; ++count) step();
}

void RandomFolder::add_marks(int count) {
    for (int made = 0; made < count; ++made) {
        const std::string at = any_path();
        if (pick(3) == 0) {
            struct stat st {};
            const std::string folder = existing();
            if (::lstat(folder.c_str(), &st) == 0 && S_ISDIR(st.st_mode) && folder != root_)
                ::lsetxattr(folder.c_str(), "trusted.overlay.opaque", "y", 1, 0);
        } else {
            ::mknod(at.c_str(), S_IFCHR, ::makedev(0, 0));
        }
    }
}

}  // namespace lamina::test
