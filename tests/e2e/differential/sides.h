#pragma once

#include "e2e/differential/program.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace lamina::test::differential {

/// Where programs run: a mount of ours. Program n has the folder "p" + n, with its lower entries in it.
class Side {
public:
    virtual ~Side() = default;
    virtual std::string folder() const = 0;
    virtual void remount() = 0;
    virtual bool has_change_times() const { return true; }  ///< ctimes and birth times as ext4 has them.
    /// Where else the result can be seen when the mount is gone: another file system's view of what we keep. Empty:
    /// nowhere.
    virtual std::string other_view() { return {}; }
};
using SideMaker = std::function<std::unique_ptr<Side>(const std::vector<Program>&)>;

std::string program_folder(std::size_t index);

/// lamina-fuse over an image that the lower entries were imported into.
std::unique_ptr<Side> make_image_side(const std::vector<Program>& programs);

/// lamina-fuse -o lowerdir=...,upperdir=U,workdir=W over `layer_count` folders. All lies in a new folder below `disk`.
/// The other view is the kernel's overlayfs over the same.
std::unique_ptr<Side> make_folder_side(const std::vector<Program>& programs, const std::string& disk,
                                       unsigned layer_count);

}  // namespace lamina::test::differential
