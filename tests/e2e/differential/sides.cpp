#include "e2e/differential/sides.h"

#include "e2e/differential/lower.h"
#include "support/real_mount.h"

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

}  // namespace

std::string program_folder(std::size_t index) {
    return "p" + std::to_string(index);
}

std::unique_ptr<Side> make_image_side(const std::vector<Program>& programs) {
    return std::make_unique<ImageSide>(programs);
}

}  // namespace lamina::test::differential
