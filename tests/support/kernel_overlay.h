#pragma once

#include <string>
#include <vector>

namespace lamina::test {

/// The kernel's overlayfs over folders, to compare with and to make uppers with. Root only.
class KernelOverlay {
public:
    static bool is_possible();  ///< False: a test should say so and return.

    struct Layers {
        std::vector<std::string> lowers;  ///< Top first.
        std::string upper;                ///< Empty: read-only.
        std::string work;
    };
    /// `options` as "redirect_dir=on,index=on"; throws std::runtime_error with the errno when it is refused.
    KernelOverlay(const Layers& layers, const std::string& options, const std::string& mountpoint);
    ~KernelOverlay();
    KernelOverlay(const KernelOverlay&) = delete;
    KernelOverlay& operator=(const KernelOverlay&) = delete;
    const std::string& path() const noexcept { return mountpoint_; }

private:
    std::string mountpoint_;
};

/// Runs a shell script with `set -e` in a folder; throws with its output when it fails.
void run_script(const std::string& folder, const std::string& script);

}  // namespace lamina::test
