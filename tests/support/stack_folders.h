#pragma once

#include "fuse/stack_view.h"
#include "support/kernel_overlay.h"
#include "support/temp_dir.h"

#include <memory>
#include <string>
#include <vector>

namespace lamina::test {

/// Folders lower0 (on top), lower1 ... and upper, work, merged: filled by scripts, changed through the kernel's
/// overlayfs, and seen through a StackView.
class StackFolders {
public:
    explicit StackFolders(int lower_count);
    StackFolders(int lower_count, const std::string& parent);

    void script(const std::string& text) const { run_script(folder_.path(), text); }
    void use_upper();  ///< From now on the upper is a part of the stack.
    /// Runs a script in a mount of the kernel's of the stack.
    void change_by_kernel(const std::string& options, const std::string& text) const;
    /// The upper becomes the topmost lower, and a new one is made.
    void lower_the_upper();
    KernelOverlay::Layers layers() const;
    std::unique_ptr<unionfs::StackView> view() const { return view(unionfs::OverlayXattrs{}); }
    std::unique_ptr<unionfs::StackView> view(const unionfs::OverlayXattrs& xattrs) const;
    unionfs::StackSource source(const std::string& name) const;
    std::string operator/(const std::string& name) const { return folder_ / name; }
    std::vector<std::string> lowers;  ///< Names, top first.
    mutable std::vector<std::string> reports;

private:
    TempDir folder_;
    bool has_upper_ = false;
    int lowered_ = 0;
};

}  // namespace lamina::test
