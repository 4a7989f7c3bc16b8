#pragma once

#include "store/byte_stream.h"
#include "store/oci.h"

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// Images, layouts and archives from a few lines; whole ones, and by the `edit` hooks every kind of broken one.
namespace lamina::test {

std::vector<std::byte> bytes_of(std::string_view text);
std::string text_of(std::span<const std::byte> data);
void write_text(const std::string& path, std::string_view text);  ///< Makes the folders above it; replaces.
std::string read_text(const std::string& path);
std::string read_all(store::ByteSource& source);
/// `text` with the one occurrence of `from` replaced; fails the test when there is none.
std::string replaced(std::string text, std::string_view from, std::string_view to);
/// The text of the store::Error that `act` throws, after its code: "malformed: ...". Empty: it throws none.
std::string error_of(const std::function<void()>& act);

class StringSink : public store::ByteSink {
public:
    void write(std::span<const std::byte> data) override { text += text_of(data); }
    std::string text;
};

std::string gzipped(std::string_view text);
std::string zstd_compressed(std::string_view text);

struct TestLayer {
    std::string tar;
    store::Compression compression = store::Compression::gzip;
    std::string media_type;  ///< Empty: the OCI one for `compression`.
};

struct TestImage {
    std::string name;  ///< Empty: no ref.name.
    std::vector<TestLayer> layers;
    std::string architecture = "amd64";
    using Edit = std::function<std::string(std::string)>;
    Edit edit_config;      ///< Before its digest is taken.
    Edit edit_manifest;    ///< Before its digest is taken.
    Edit edit_descriptor;  ///< The entry of index.json.
};

/// An OCI layout in a folder. finish() writes oci-layout and index.json; until then there are only blobs.
class TestLayout {
public:
    explicit TestLayout(std::string folder);
    store::BlobDigest add_blob(std::string_view bytes);
    /// Writes the blobs of an image; gives its descriptor as JSON, without adding it.
    std::string make_image(const TestImage& image);
    void add_image(const TestImage& image) { add_entry(make_image(image)); }
    void add_entry(std::string descriptor) { entries_.push_back(std::move(descriptor)); }
    void finish();

    const std::string& folder() const noexcept { return folder_; }
    std::string blob_file(const store::BlobDigest& digest) const;
    /// Of the last image that was made.
    store::BlobDigest manifest{store::Digest::of({})};
    store::BlobDigest config{store::Digest::of({})};
    std::vector<store::BlobDigest> layers;
    std::vector<store::DiffId> diff_ids;

private:
    std::string folder_;
    std::vector<std::string> entries_;
};

/// {"mediaType":..,"digest":..,"size":..<more>}
std::string descriptor_json(std::string_view media_type, const store::BlobDigest& digest, std::size_t size_bytes,
                            std::string_view more = "");
/// The whole folder as a tar, names sorted.
std::string tar_of_folder(const std::string& folder);

}  // namespace lamina::test
