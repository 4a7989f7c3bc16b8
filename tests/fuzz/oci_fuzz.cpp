#include "fuzz/checks.h"
#include "store/docker_archive_source.h"
#include "store/error.h"
#include "store/oci.h"
#include "store/oci_layout_source.h"
#include "store/reference.h"
#include "store/tar_files.h"

#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <string>
#include <string_view>
#include <vector>

// OCI documents, names, whole layouts and docker archives out of any bytes. The first byte chooses what they are. In a
// layout the digests that lead from one document to the next are put right ("@C" is the config's, "@L" the layer's, in
// lower case their sizes), since no fuzzer finds them. Nothing may crash; an error is one line of printable text; what
// was accepted can be written and is accepted again.

namespace {

using namespace lamina::store;
using lamina::fuzz::check;
using lamina::fuzz::refuse_or;

std::vector<std::byte> bytes_of(std::string_view text) {
    const auto bytes = as_bytes(text);
    return {bytes.begin(), bytes.end()};
}

class MemorySource : public ByteSource {
public:
    explicit MemorySource(std::string text) : text_(std::move(text)) {}
    std::size_t read(std::span<std::byte> out) override {
        const std::string piece = text_.substr(at_, out.size());
        std::copy_n(as_bytes(piece).begin(), piece.size(), out.begin());
        at_ += piece.size();
        return piece.size();
    }

private:
    std::string text_;
    std::size_t at_ = 0;
};

class MemoryFiles : public SourceFiles {
public:
    bool has(const std::string& path) const override { return files.contains(path); }
    OpenFile open(const std::string& path) const override {
        if (!has(path)) throw Error(Errc::not_found, describe("a file") + ": missing");
        const std::string& text = files.at(path);
        return {.size_bytes = text.size(),
                .first_bytes = bytes_of(std::string_view(text).substr(0, 4)),
                .bytes = std::make_unique<MemorySource>(text)};
    }
    std::string describe(std::string_view path) const override { return "/m/" + std::string(path); }
    std::map<std::string, std::string> files;
};

void read_everything(ImageSource& source) {
    const std::vector<SourceImage> images = source.images();
    check(!images.empty());
    for (std::size_t image = 0; image < images.size(); ++image) {
        const oci::Manifest manifest = oci::parse_manifest(images[image].manifest, images[image].manifest_media_type);
        const oci::Config config = oci::parse_config(images[image].config);
        check(manifest.layers.size() == images[image].layers.size());
        check(config.diff_ids.size() == images[image].layers.size());
        check(Digest::of(images[image].config) == manifest.config.digest.digest);
        for (std::size_t layer = 0; layer < images[image].layers.size(); ++layer) {
            std::vector<std::byte> buffer(4096);
            std::uint64_t size_bytes = 0;
            const auto bytes = source.open_layer(image, layer);
            while (const std::size_t got = bytes->read(buffer)) size_bytes += got;
            check(size_bytes == images[image].layers[layer].blob->size_bytes);
        }
    }
}

void fuzz_manifest(std::string_view text) {
    refuse_or([&] {
        const oci::Manifest manifest = oci::parse_manifest(as_bytes(text), "");
        check(manifest.layers.size() <= oci::kMaxLayers);
        const std::string written = oci::write_manifest(manifest.config, manifest.layers);
        const oci::Manifest again = oci::parse_manifest(as_bytes(written), "");
        check(oci::write_manifest(again.config, again.layers) == written);
    });
}

void fuzz_names(std::string_view text) {
    refuse_or([&] {
        const ImageName name = ImageName::parse(text);
        check(ImageName::parse(name.text()) == name);
    });
    refuse_or([&] { ImageReference::parse(text); });
    refuse_or([&] { check(oci::Platform::parse(text).text() == text); });
}

std::string replaced(std::string text, std::string_view token, const std::string& value) {
    for (std::size_t at = text.find(token); at != std::string::npos; at = text.find(token, at + value.size())) {
        text.replace(at, token.size(), value);
        if (text.size() > 1 << 20) break;
    }
    return text;
}

std::string add_blob(MemoryFiles& files, const std::string& text) {
    const Digest digest = Digest::of(as_bytes(text));
    files.files[blob_path({digest})] = text;
    return digest.text();
}

/// The parts "index.json", config, manifest are divided by zero bytes.
void fuzz_layout(std::string_view input) {
    std::string parts[3];
    for (std::string& part : parts) {
        const std::size_t end = input.find('\0');
        part = input.substr(0, end);
        input = end == std::string_view::npos ? "" : input.substr(end + 1);
    }
    auto files = std::make_unique<MemoryFiles>();
    const std::string layer = add_blob(*files, "layer");
    const std::string config_text = replaced(parts[1], "@L", layer);
    const std::string config = add_blob(*files, config_text);
    std::string manifest_text = replaced(replaced(parts[2], "@L", layer), "@C", config);
    manifest_text = replaced(replaced(manifest_text, "@l", "5"), "@c", std::to_string(config_text.size()));
    const std::string manifest = add_blob(*files, manifest_text);
    files->files["oci-layout"] = R"({"imageLayoutVersion":"1.0.0"})";
    files->files["index.json"] =
        replaced(replaced(parts[0], "@M", manifest), "@m", std::to_string(manifest_text.size()));
    OciLayoutSource source(std::move(files), "", oci::Platform::parse("linux/amd64"));
    refuse_or([&] { read_everything(source); });
}

void fuzz_archive(std::string_view tar) {
    const UniqueFd fd(::memfd_create("archive", MFD_CLOEXEC));
    check(::write(fd.get(), tar.data(), tar.size()) == static_cast<ssize_t>(tar.size()));
    refuse_or([&] {
        DockerArchiveSource source(
            std::make_unique<TarFiles>("/proc/self/fd/" + std::to_string(fd.get()), TarFiles::Links::resolve), "");
        read_everything(source);
    });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
    switch (data[0] % 6) {
        case 0:
            fuzz_manifest(text);
            break;
        case 1:
            refuse_or([&] { oci::parse_image_index(as_bytes(text)); });
            break;
        case 2:
            refuse_or([&] { oci::parse_config(as_bytes(text)); });
            break;
        case 3:
            fuzz_names(text);
            break;
        case 4:
            fuzz_layout(text);
            break;
        case 5:
            fuzz_archive(text);
            break;
    }
    return 0;
}
