#pragma once

#include "client/api.h"
#include "store/explain.h"

namespace lamina::daemon {

std::string state_name(store::LayerState state);
api::Explanation explanation_of(const store::Explanation& from);

}  // namespace lamina::daemon
