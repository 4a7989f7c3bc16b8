#pragma once

#include "fuse/directory_keeper.h"
#include "fuse/stack_view.h"
#include "support/kernel_overlay.h"
#include "support/temp_dir.h"
#include "support/union_fixture.h"

#include <memory>
#include <string>
#include <vector>

namespace lamina::test {

/// Folders for a mount over directories: lowers (the first on top), an upper and a work folder.
struct DirectoryFolders {
    std::vector<std::string> lowers;
    std::string upper;
    std::string work;
    bool makes_metacopy = false;
};
/// Makes lower/, upper/ and work/ in a folder.
DirectoryFolders make_folders(const std::string& folder);

/// A union over directories, without a mount: what lamina-fuse -o lowerdir=,upperdir=,workdir= serves.
class DirectoryUnion : public UnionPaths {
public:
    struct Options {
        bool is_user = false;  ///< Marks are attributes of the namespace user.
        bool is_volatile = true;
    };
    explicit DirectoryUnion(const DirectoryFolders& folders) : DirectoryUnion(folders, Options()) {}
    DirectoryUnion(const DirectoryFolders& folders, const Options& options);
    ~DirectoryUnion();
    DirectoryUnion(const DirectoryUnion&) = delete;
    DirectoryUnion& operator=(const DirectoryUnion&) = delete;

    std::unique_ptr<unionfs::StackView> view;
    std::unique_ptr<unionfs::DirectoryKeeper> keeper;
};

/// The kernel's overlayfs over the same folders.
class KernelMount {
public:
    explicit KernelMount(const DirectoryFolders& folders, const std::string& options = "redirect_dir=on,index=on")
        : overlay_({.lowers = folders.lowers, .upper = folders.upper, .work = folders.work}, options, folder_.path()) {}
    const std::string& path() const noexcept { return overlay_.path(); }

private:
    TempDir folder_;
    KernelOverlay overlay_;
};

}  // namespace lamina::test
