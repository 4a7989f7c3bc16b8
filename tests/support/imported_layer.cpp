#include "support/imported_layer.h"

#include "support/oci_archive.h"

#include <stdexcept>

namespace lamina::test {

std::string ImportedLayer::tar() {
    StringSink out;
    recipe()->write_tar(chunks, out);
    return out.text;
}

std::vector<store::LayerEntry> ImportedLayer::entries() const {
    std::vector<store::LayerEntry> out;
    const auto opened = recipe();
    const auto entries = opened->entries();
    while (auto entry = entries->next()) out.push_back(std::move(*entry));
    return out;
}

store::LayerEntry ImportedLayer::entry(const std::string& path) const {
    for (auto& entry : entries()) {
        if (entry.path == path) return entry;
    }
    throw std::runtime_error("no entry " + path);
}

std::string ImportedLayer::body(const std::string& path) const {
    return chunks.text(entry(path).content);
}

std::unique_ptr<ImportedLayer> import_tar(const std::string& tar, const store::LayerLimits& limits) {
    auto out = std::make_unique<ImportedLayer>();
    TextSource source(tar);
    out->layer = store::import_layer(source, out->chunks, out->recipe_path(), limits, {});
    return out;
}

}  // namespace lamina::test
