#include "store/lazy_check.h"

#include "store/error.h"
#include "store/layer_difference.h"
#include "store/layer_importer.h"
#include "store/layer_stream.h"
#include "store/outgoing_image.h"
#include "store/recipe.h"

#include <vector>

namespace lamina::store {

namespace {

constexpr std::size_t kBufferBytes = 256 << 10;

class NoSink : public ByteSink {
public:
    void write(std::span<const std::byte>) override {}
};

/// Names chunks and keeps none.
class NamingSink : public ChunkSink {
public:
    ChunkId add(std::span<const std::byte> data) override { return {Digest::of(data)}; }
};

bool is_wrong(const Error& error) {
    return error.code() == Errc::corrupt || error.code() == Errc::malformed;
}

bool has_diff_id(StoreCore& core, const LayerToCheck& layer, const std::stop_token& stop) {
    const LayerToWrite whole{
        .diff_id = layer.diff_id, .tar_bytes = layer.lazy.points.tar_bytes, .write_tar = [&](ByteSink& out) {
            Recipe::open(core.paths.recipe(layer.diff_id))->write_tar(*core.chunks, out);
        }};
    NoSink nowhere;
    try {
        write_checked_tar(whole, nowhere, [&](std::size_t) {
            if (stop.stop_requested()) throw Error(Errc::cancelled, "complete: cancelled");
        });
        return true;
    } catch (const Error& error) {  // Another one is an answer; a pack that is damaged is one, too.
        if (!is_wrong(error)) throw;
        return false;
    }
}

BlobDigest digest_at(const std::shared_ptr<RegistrySession>& place, const LayerToCheck& layer,
                     const std::stop_token& stop) {
    const auto blob = open_registry_blob({place}, layer.lazy.blob, stop);
    std::vector<std::byte> buffer(kBufferBytes);
    Hasher hasher;
    while (const std::size_t count = blob->read(buffer)) hasher.update(std::span(buffer).first(count));
    return {hasher.finish()};
}

bool has_blob_digest(StoreCore& core, const LayerToCheck& layer, const std::stop_token& stop) {
    const oci::Descriptor& blob = layer.lazy.blob;
    if (BlobSpool(core.paths.blob(layer.diff_id)).digest(blob.size_bytes, stop) == blob.digest) return true;
    for (const auto& place : layer.places) {
        if (digest_at(place, layer, stop) == blob.digest) return true;
    }
    return false;
}

}  // namespace

std::optional<std::string> check_lazy_layer(StoreCore& core, const LayerToCheck& layer, const std::stop_token& stop) {
    if (!has_diff_id(core, layer, stop)) {
        if (auto lie = find_lie(core, layer, stop)) return lie;
        throw Error(Errc::corrupt, "layer " + layer.diff_id.digest.text() +
                                       ": what came gives another tar, and no registry gives the blob that is meant");
    }
    if (has_blob_digest(core, layer, stop)) return std::nullopt;
    return "its blob is not " + layer.lazy.blob.digest.digest.text();
}

std::optional<std::string> find_lie(StoreCore& core, const LayerToCheck& layer, const std::stop_token& stop) {
    const JobFolder folder(core);
    const std::string path = folder.path() + "/recipe";
    const oci::Descriptor& blob = layer.lazy.blob;
    std::optional<DiffId> diff_id;
    try {
        const auto tar = LayerStream::open(open_registry_blob(layer.places, blob, stop), layer.lazy.points.compression,
                                           {blob.digest, blob.size_bytes}, StreamLimits{});
        NamingSink sink;
        diff_id = import_layer(*tar, sink, path, LayerLimits{}, stop).diff_id;
    } catch (const Error& error) {
        if (!is_wrong(error)) throw;
        return std::nullopt;
    }
    if (*diff_id != layer.diff_id) return "its blob gives a tar of diff ID " + diff_id->digest.text();
    const auto said = Recipe::open(core.paths.recipe(layer.diff_id));
    if (auto difference = first_difference(*Recipe::open(path), *said)) return difference;
    return "bytes between its entries, or where its bytes lie, are not what the index says";
}

void quarantine(StoreCore& core, const DiffId& layer, const std::string& why) {
    write_file_atomically(core.paths.quarantined(layer), as_bytes(why));
}

}  // namespace lamina::store
