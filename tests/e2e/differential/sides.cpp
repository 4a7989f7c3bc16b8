#include "e2e/differential/sides.h"

#include "e2e/differential/lower.h"
#include "support/folder_mount.h"
#include "support/real_mount.h"

#include <sys/mount.h>
#include <system_error>

#include <cerrno>

namespace lamina::test::differential {
namespace {

class ImageSide : public Side {
public:
    explicit ImageSide(const std::vector<Program>& programs)
        : mount_(layer(programs), {.is_read_only = false, .arguments = {"-o", "dev,suid"}}) {}
    std::string folder() const override { return mount_.mountpoint(); }
    void remount() override {
        mount_.unmount();
        mount_.start();
    }

private:
    static std::string layer(const std::vector<Program>& programs) {
        std::vector<NamedLower> named;
        for (std::size_t i = 0; i < programs.size(); ++i) named.push_back({program_folder(i), &programs[i].lower});
        return layer_of(named);
    }
    RealMount mount_;
};

class FolderSide : public Side {
public:
    FolderSide(const std::vector<Program>& programs, const std::string& disk, unsigned layer_count)
        : mount_(layer_count, disk) {
        for (std::size_t i = 0; i < programs.size(); ++i) {
            const auto layers = split_lower(programs[i].lower, layer_count, programs[i].seed);
            for (unsigned layer = 0; layer < layer_count; ++layer)
                if (!layers[layer].empty()) write_folder(layers[layer], mount_.layer(layer) + "/" + program_folder(i));
        }
        mount_.start();
    }
    std::string folder() const override { return mount_.mountpoint(); }
    bool has_change_times() const override { return false; }
    void remount() override {
        mount_.stop();
        mount_.start();
    }
    std::string other_view() override {
        mount_.stop();
        const std::string options = mount_.options() + ",redirect_dir=on,index=on";
        if (::mount("overlay", folder().c_str(), "overlay", MS_NOATIME, options.c_str()) != 0)
            throw std::system_error(errno, std::generic_category(), "overlayfs refuses the upper");
        return folder();
    }

private:
    FolderMount mount_;
};

}  // namespace

std::unique_ptr<Side> make_folder_side(const std::vector<Program>& programs, const std::string& disk,
                                       unsigned layer_count) {
    return std::make_unique<FolderSide>(programs, disk, layer_count);
}

std::string program_folder(std::size_t index) {
    return "p" + std::to_string(index);
}

std::unique_ptr<Side> make_image_side(const std::vector<Program>& programs) {
    return std::make_unique<ImageSide>(programs);
}

}  // namespace lamina::test::differential
