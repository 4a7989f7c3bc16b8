#include "e2e/differential/sides.h"

#include "e2e/differential/lower.h"
#include "store/file.h"
#include "support/real_mount.h"
#include "support/temp_dir.h"

#include <sys/mount.h>
#include <system_error>

#include <cerrno>
#include <cstdlib>
#include <stdexcept>

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
    FolderSide(const std::vector<Program>& programs, const std::string& disk, unsigned layer_count) : folder_(disk) {
        for (const char* const name : {"/upper", "/work", "/mnt"}) store::make_folder(folder_.path() + name);
        for (unsigned layer = 0; layer < layer_count; ++layer) {
            const std::string path = folder_ / "layer" + std::to_string(layer);
            store::make_folder(path);
            lowers_ += (layer == 0 ? "" : ":") + path;
        }
        for (std::size_t i = 0; i < programs.size(); ++i) {
            const auto layers = split_lower(programs[i].lower, layer_count, programs[i].seed);
            for (unsigned layer = 0; layer < layer_count; ++layer)
                if (!layers[layer].empty())
                    write_folder(layers[layer], folder_ / "layer" + std::to_string(layer) + "/" + program_folder(i));
        }
        start();
    }
    ~FolderSide() override { ::umount2(folder().c_str(), MNT_DETACH); }
    std::string folder() const override { return folder_ / "mnt"; }
    bool has_change_times() const override { return false; }
    void remount() override {
        stop();
        start();
    }
    std::string other_view() override {
        stop();
        const std::string options = this->options() + ",redirect_dir=on,index=on";
        if (::mount("overlay", folder().c_str(), "overlay", MS_NOATIME, options.c_str()) != 0)
            throw std::system_error(errno, std::generic_category(), "overlayfs refuses the upper");
        return folder();
    }

private:
    std::string options() const {
        return "lowerdir=" + lowers_ + ",upperdir=" + (folder_ / "upper") + ",workdir=" + (folder_ / "work");
    }
    /// The server of the mount before may still wait for its disk, on a machine that is busy longer than it waits.
    void start() {
        const char* const given = std::getenv("LAMINA_FUSE");
        constexpr int kTries = 30;
        for (int tries = 1;; ++tries) {
            const auto ran =
                run_program({given ? given : LAMINA_FUSE_PROGRAM, "-o", options() + ",dev,suid", folder_ / "mnt"});
            if (ran.exit_code == 0) return;
            if (tries == kTries || ran.output.find("in use by another mount") == std::string::npos)
                throw std::runtime_error("lamina-fuse: " + ran.output);
        }
    }
    void stop() {
        if (::umount2(folder().c_str(), 0) != 0) throw std::system_error(errno, std::generic_category(), "umount");
    }

    TempDir folder_;
    std::string lowers_;
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
