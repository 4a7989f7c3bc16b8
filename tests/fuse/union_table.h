#pragma once

#include "fuse/node.h"

#include <map>
#include <string>
#include <string_view>
#include <vector>

/// The union's rules as a table of small scripts: run on UnionFs without a mount (union_table_test.cpp), on a plain
/// folder, to see that a local file system answers the same, and through a real mount (the e2e tests).
namespace lamina::test {

/// `command` is words ("/@255" is a name of 255 letters); `expected` what it answers: "ok", an errno's name, or text.
/// Commands:
///
///     create P TEXT      mkdir P         symlink P TARGET    mkfifo P        link OLD P
///     unlink P           rmdir P         rename OLD P        rename OLD P exchange|noreplace
///     write P OFFSET TEXT                append P TEXT       truncate P SIZE
///     punch P OFFSET SIZE                zero P OFFSET SIZE  grow P SIZE (fallocate)
///     chmod P MODE       chown P (to its owner)              chown P nobody (changes neither owner)
///     setxattr P NAME VALUE [create|replace]                 removexattr P NAME
///     read P             -> content, with each NUL as a dot  readlink P
///     list P             -> names, sorted                    getxattr P NAME   xattrs P -> names, sorted
///     type P             -> dir, file, link, fifo            mode P -> octal   nlink P   size P
///     same P Q           -> yes or no: one inode             hole P OFFSET, data P OFFSET -> SEEK_HOLE, SEEK_DATA
///     open P H           holds the inode                     hread H, hwrite H OFFSET TEXT, hnlink H, close H
///     look P H           remembers P's times                 moved P H -> those of mtime and ctime that are others now
struct UnionStep {
    std::string_view command;
    std::string_view expected;
};

/// `promises`: those of fuse/SEMANTICS.md that would be broken if an answer was another one, as "[data.sources]".
struct UnionScript {
    std::string_view name;
    std::string_view promises;
    std::vector<UnionStep> steps;
};

/// What lies below when a script begins; the same kind of commands, made once.
const std::vector<std::string_view>& union_lower();
const std::vector<UnionScript>& union_table();

/// What a script is run on.
class UnionTarget {
public:
    using Words = std::vector<std::string>;
    virtual ~UnionTarget() = default;
    virtual std::string run(const Words& words) = 0;
};

/// Runs all steps; returns one line for each answer that is not the expected one.
std::vector<std::string> run_script(const UnionScript& script, UnionTarget& target);
UnionTarget::Words words_of(std::string_view command);
std::string errno_name(int error_number);  ///< "ENOENT"; 0: "ok".
/// Waits until a file system that stamps by the kernel's ticks has another time than now.
void wait_for_tick();

/// For look and moved.
struct ShownTimes {
    unionfs::Timestamp mtime;
    unionfs::Timestamp ctime;
    std::string moved_since(const ShownTimes& before) const;
};

/// System calls below a folder: a plain one, or a mount.
class FolderTarget final : public UnionTarget {
public:
    explicit FolderTarget(std::string folder) : folder_(std::move(folder)) {}
    ~FolderTarget() override;
    std::string run(const Words& words) override;

private:
    using Command = std::string (FolderTarget::*)(const Words&);
    static const std::map<std::string, Command>& commands();
    std::string path(const std::string& name) const { return folder_ + name; }
    std::string make(const Words& words);
    std::string remove(const Words& words);
    std::string rename(const Words& words);
    std::string write(const Words& words);
    std::string allocate(const Words& words);
    std::string change(const Words& words);
    std::string read(const Words& words);
    std::string list(const Words& words);
    std::string stat(const Words& words);
    std::string xattr(const Words& words);
    std::string seek(const Words& words);
    std::string handle(const Words& words);
    std::string times(const Words& words);

    std::string folder_;
    std::map<std::string, int> open_;
    std::map<std::string, ShownTimes> looks_;
};

}  // namespace lamina::test
