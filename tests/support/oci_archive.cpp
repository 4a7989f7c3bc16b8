#include "support/oci_archive.h"

#include "store/error.h"
#include "store/file.h"
#include "store/gzip_writer.h"
#include "support/tar_builder.h"

#include <sys/stat.h>

#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <stdexcept>

namespace lamina::test {

namespace {

std::string compressed(const TestLayer& layer) {
    switch (layer.compression) {
        case store::Compression::none:
            return layer.tar;
        case store::Compression::gzip:
            return gzipped(layer.tar);
        case store::Compression::zstd:
            return zstd_compressed(layer.tar);
    }
    return layer.tar;
}

std::string media_type_of(const TestLayer& layer) {
    if (!layer.media_type.empty()) return layer.media_type;
    const std::string base = "application/vnd.oci.image.layer.v1.tar";
    if (layer.compression == store::Compression::none) return base;
    return base + (layer.compression == store::Compression::gzip ? "+gzip" : "+zstd");
}

std::string edited(const TestImage::Edit& edit, std::string text) {
    return edit ? edit(std::move(text)) : text;
}

std::string joined(const std::vector<std::string>& items) {
    std::string out;
    for (const std::string& item : items) out += (out.empty() ? "" : ",") + item;
    return out;
}

void add_members(const std::string& folder, const std::string& prefix, TarBuilder& tar) {
    for (const std::string& name : store::list_folder(folder)) {
        const std::string path = folder + "/" + name;
        struct stat st {};
        if (::stat(path.c_str(), &st) != 0) throw std::runtime_error("stat " + path);
        if (S_ISDIR(st.st_mode)) {
            tar.folder(prefix + name);
            add_members(path, prefix + name + "/", tar);
        } else {
            tar.file(prefix + name, read_text(path));
        }
    }
}

}  // namespace

std::vector<std::byte> bytes_of(std::string_view text) {
    const auto bytes = store::as_bytes(text);
    return {bytes.begin(), bytes.end()};
}

std::string text_of(std::span<const std::byte> data) {
    return std::string(reinterpret_cast<const char*>(data.data()), data.size());
}

void write_text(const std::string& path, std::string_view text) {
    store::make_folders(store::folder_of(path));
    const auto close_file = [](std::FILE* file) { std::fclose(file); };
    const std::unique_ptr<std::FILE, decltype(close_file)> file(std::fopen(path.c_str(), "wb"), close_file);
    if (!file || std::fwrite(text.data(), 1, text.size(), file.get()) != text.size()) {
        throw std::runtime_error("cannot write " + path);
    }
}

std::string read_text(const std::string& path) {
    return text_of(store::read_file(path, 1ull << 30));
}

std::string read_all(store::ByteSource& source) {
    std::string out;
    std::array<std::byte, 4096> buffer;
    while (const std::size_t got = source.read(buffer)) out += text_of(std::span(buffer).first(got));
    return out;
}

std::string replaced(std::string text, std::string_view from, std::string_view to) {
    const std::size_t at = text.find(from);
    if (at == std::string::npos) throw std::runtime_error("no " + std::string(from) + " in " + text);
    return text.replace(at, from.size(), to);
}

std::string error_of(const std::function<void()>& act) {
    try {
        act();
    } catch (const store::Error& error) {
        return std::string(store::errc_name(error.code())) + ": " + error.what();
    }
    return "";
}

std::string gzipped(std::string_view text) {
    StringSink sink;
    store::GzipWriter writer(sink);
    writer.write(store::as_bytes(text));
    writer.finish();
    return sink.text;
}

std::string zstd_compressed(std::string_view text) {
    std::string out(ZSTD_compressBound(text.size()), '\0');
    out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
    return out;
}

std::string tar_of_folder(const std::string& folder) {
    TarBuilder tar;
    add_members(folder, "", tar);
    return tar.tar();
}

std::string descriptor_json(std::string_view media_type, const store::BlobDigest& digest, std::size_t size_bytes,
                            std::string_view more) {
    return "{\"mediaType\":\"" + std::string(media_type) + "\",\"digest\":\"" + digest.digest.text() +
           "\",\"size\":" + std::to_string(size_bytes) + std::string(more) + "}";
}

TestLayout::TestLayout(std::string folder) : folder_(std::move(folder)) {
    store::make_folders(folder_ + "/blobs/sha256");
}

std::string TestLayout::blob_file(const store::BlobDigest& digest) const {
    return folder_ + "/blobs/sha256/" + digest.digest.hex();
}

store::BlobDigest TestLayout::add_blob(std::string_view bytes) {
    const store::BlobDigest digest{store::Digest::of(store::as_bytes(bytes))};
    write_text(blob_file(digest), bytes);
    return digest;
}

std::string TestLayout::make_image(const TestImage& image) {
    std::vector<std::string> descriptors;
    std::vector<std::string> ids;
    layers.clear();
    diff_ids.clear();
    for (const TestLayer& layer : image.layers) {
        const std::string blob = compressed(layer);
        layers.push_back(add_blob(blob));
        descriptors.push_back(descriptor_json(media_type_of(layer), layers.back(), blob.size()));
        diff_ids.push_back({store::Digest::of(store::as_bytes(layer.tar))});
        ids.push_back("\"" + diff_ids.back().digest.text() + "\"");
    }
    const std::string config_text =
        edited(image.edit_config, "{\"architecture\":\"" + image.architecture +
                                      "\",\"os\":\"linux\",\"created\":\"2026-01-01T00:00:"
                                      "00Z\",\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[" +
                                      joined(ids) + "]}}");
    config = add_blob(config_text);
    const std::string manifest_text =
        edited(image.edit_manifest,
               "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":" +
                   descriptor_json("application/vnd.oci.image.config.v1+json", config, config_text.size()) +
                   ",\"layers\":[" + joined(descriptors) + "]}");
    manifest = add_blob(manifest_text);
    const std::string annotation =
        image.name.empty() ? "" : ",\"annotations\":{\"org.opencontainers.image.ref.name\":\"" + image.name + "\"}";
    return edited(image.edit_descriptor, descriptor_json("application/vnd.oci.image.manifest.v1+json", manifest,
                                                         manifest_text.size(), annotation));
}

void TestLayout::finish() {
    write_text(folder_ + "/oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}");
    write_text(folder_ + "/index.json", "{\"schemaVersion\":2,\"manifests\":[" + joined(entries_) + "]}");
}

}  // namespace lamina::test
