#include "support/directory_union.h"

#include "support/catch.h"

#include <fcntl.h>
#include <sys/stat.h>

namespace lamina::test {
namespace {

store::UniqueFd open_folder(const std::string& path, int flags) {
    store::UniqueFd fd(::open(path.c_str(), flags | O_DIRECTORY | O_CLOEXEC));
    REQUIRE(fd);
    return fd;
}

}  // namespace

DirectoryFolders make_folders(const std::string& folder) {
    for (const char* name : {"/lower", "/upper", "/work"}) REQUIRE(::mkdir((folder + name).c_str(), 0755) == 0);
    return {
        .lowers = {folder + "/lower"}, .upper = folder + "/upper", .work = folder + "/work", .makes_metacopy = false};
}

DirectoryUnion::DirectoryUnion(const DirectoryFolders& folders, const Options& given) {
    std::vector<unionfs::StackSource> sources;
    sources.push_back({.name = folders.upper, .folder = open_folder(folders.upper, O_PATH), .image = {}});
    for (const std::string& lower : folders.lowers)
        sources.push_back({.name = lower, .folder = open_folder(lower, O_PATH), .image = {}});
    unionfs::StackOptions options;
    options.has_upper = true;
    options.work_folder = open_folder(folders.work, O_PATH);
    options.xattrs.is_user = given.is_user;
    view = std::make_unique<unionfs::StackView>(std::move(sources), std::move(options));
    arena = *unionfs::Arena::create();
    changes = std::make_unique<unionfs::ChangeSet>(*arena, *view);
    keeper = std::make_unique<unionfs::DirectoryKeeper>(
        *view, *changes,
        unionfs::DirectoryKeeper::Folders{open_folder(folders.upper, O_RDONLY), open_folder(folders.work, O_PATH)},
        unionfs::DirectoryKeeper::Options{.is_volatile = given.is_volatile, .makes_metacopy = folders.makes_metacopy});
    fs = std::make_unique<unionfs::UnionFs>(*view, *changes, keeper.get());
}

DirectoryUnion::~DirectoryUnion() {
    fs.reset();
    keeper.reset();
    changes.reset();
}

}  // namespace lamina::test
