#pragma once

#include "store/blob_spool.h"
#include "store/lazy_layer.h"
#include "store/registry_blob.h"
#include "store/store_core.h"

#include <optional>
#include <stop_token>
#include <string>

namespace lamina::store {

/// A lazy layer all of whose bytes are here, or of which something does not fit.
struct LayerToCheck {
    DiffId diff_id;
    const LazyLayer& lazy;
    RegistryPlaces places;
};

/// What is wrong with the layer, as one line; nullopt: nothing. Compares the tar that its recipe gives with the diff
/// ID, and the blob with its digest: from the spool, else read once more.
std::optional<std::string> check_lazy_layer(StoreCore& core, const LayerToCheck& layer, const std::stop_token& stop);

/// Why parts of the layer are not what its recipe says: reads the whole blob, and compares what is in it with the
/// recipe. nullopt: nobody gives the blob that the manifest names, so that nothing is known of the recipe.
std::optional<std::string> find_lie(StoreCore& core, const LayerToCheck& layer, const std::stop_token& stop);

/// Says durably that nothing that was published of the layer is to be believed.
void quarantine(StoreCore& core, const DiffId& layer, const std::string& why);

}  // namespace lamina::store
