// make_mount STORE_FOLDER MOUNT_ID [--ro] [LAYER.tar ...]: a store of its own with one image of these layers (bottom
// first; none: an empty image) and a mount of it; prints the mount folder, for lamina-fuse --state. For measurements.
#include "store/digest.h"
#include "store/error.h"
#include "store/file.h"
#include "support/mini_store.h"
#include "support/tar_builder.h"

#include <unistd.h>

#include <cstdio>
#include <string>

namespace {

class FileSource : public lamina::store::ByteSource {
public:
    explicit FileSource(const std::string& path) : path_(path), fd_(lamina::store::open_read(path)) {}
    std::size_t read(std::span<std::byte> out) override {
        const std::size_t got = lamina::store::read_some(fd_.get(), at_, out, path_);
        at_ += got;
        return got;
    }

private:
    std::string path_;
    lamina::store::UniqueFd fd_;
    std::uint64_t at_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: make_mount STORE_FOLDER MOUNT_ID [--ro] [LAYER.tar ...]\n");
        return 2;
    }
    try {
        lamina::test::MiniStore store(argv[1]);
        bool is_read_only = false;
        bool has_layers = false;
        for (int i = 3; i < argc; ++i) {
            if (std::string(argv[i]) == "--ro") {
                is_read_only = true;
                continue;
            }
            FileSource layer(argv[i]);
            store.add_layer(layer);
            has_layers = true;
        }
        if (!has_layers) store.add_layer(lamina::test::TarBuilder().folder("empty").tar());
        std::printf("%s\n", store.make_mount(argv[2], is_read_only).c_str());
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "make_mount: %s\n", error.what());
        return 1;
    }
}
