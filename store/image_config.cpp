#include "store/image_config.h"

#include "store/error.h"
#include "store/json.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

#include <ctime>

namespace lamina::store {

namespace {

namespace bj = boost::json;

bj::array& array_in(bj::object& object, std::string_view name) {
    bj::value& value = object[name];
    if (value.is_null()) value.emplace_array();
    if (!value.is_array()) throw Error(Errc::malformed, "image config: " + std::string(name) + " is no array");
    return value.get_array();
}

std::size_t layers_in_history(const bj::array& history) {
    std::size_t count = 0;
    for (const bj::value& entry : history) {
        const bj::object* const object = entry.if_object();
        const bj::value* const empty = object ? object->if_contains("empty_layer") : nullptr;
        if (!empty || !empty->is_bool() || !empty->get_bool()) ++count;
    }
    return count;
}

}  // namespace

std::string plain_config(const oci::Platform& platform, const DiffId& layer) {
    const std::string epoch = "1970-01-01T00:00:00Z";
    bj::object config;
    config["created"] = epoch;
    config["architecture"] = platform.architecture;
    if (!platform.variant.empty()) config["variant"] = platform.variant;
    config["os"] = platform.os;
    config["config"] = bj::object();
    config["rootfs"] = bj::object{{"type", "layers"}, {"diff_ids", bj::array{bj::value(layer.digest.text())}}};
    config["history"] = bj::array{bj::object{{"created", epoch}, {"created_by", "lamina import"}}};
    return bj::serialize(config);
}

std::string extended_config(std::span<const std::byte> base, const ConfigExtension& extension) {
    bj::value document = json::parse(base, {});
    if (!document.is_object()) throw Error(Errc::malformed, "image config: not an object");
    bj::object& config = document.get_object();
    config["created"] = extension.created;
    bj::value& rootfs = config["rootfs"];
    if (!rootfs.is_object()) throw Error(Errc::malformed, "image config: rootfs is no object");
    bj::array& diff_ids = array_in(rootfs.get_object(), "diff_ids");
    bj::array& history = array_in(config, "history");
    for (std::size_t covered = layers_in_history(history); covered < diff_ids.size(); ++covered) {
        history.push_back(bj::object{{"created_by", "(not known)"}});
    }
    diff_ids.push_back(bj::value(extension.layer.digest.text()));
    history.push_back(bj::object{{"created", extension.created}, {"created_by", extension.created_by}});
    return bj::serialize(document);
}

std::string rfc3339_now() {
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    ::gmtime_r(&now, &utc);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return text;
}

std::string plain_manifest(std::string_view config, const std::vector<StoredLayer>& layers) {
    const oci::Descriptor of_config{.media_type = "application/vnd.oci.image.config.v1+json",
                                    .digest = {Digest::of(as_bytes(config))},
                                    .size_bytes = config.size()};
    std::vector<oci::Descriptor> of_layers;
    for (const StoredLayer& layer : layers) {
        of_layers.push_back({.media_type = "application/vnd.oci.image.layer.v1.tar",
                             .digest = {layer.diff_id.digest},
                             .size_bytes = layer.tar_bytes});
    }
    return oci::write_manifest(of_config, of_layers);
}

}  // namespace lamina::store
