#pragma once

#include "e2e/differential/program.h"

#include <string>
#include <vector>

namespace lamina::test::differential {

/// Makes what lies below a program in a folder that is not there yet: as the reference has it. Throws
/// std::system_error.
void write_folder(const std::vector<LowerEntry>& lower, const std::string& folder);

/// The same for several programs, each in a folder of its own name, as a layer tar.
struct NamedLower {
    std::string folder;
    const std::vector<LowerEntry>* lower = nullptr;
};
std::string layer_of(const std::vector<NamedLower>& programs);

/// The same as `count` layers of folders, top first: entries here and there, folders merged, other things under them
/// that whiteouts and opaque folders hide. The same seed gives the same layers. A new entry type is in them: w, a
/// whiteout.
std::vector<std::vector<LowerEntry>> split_lower(const std::vector<LowerEntry>& lower, unsigned count, unsigned seed);

}  // namespace lamina::test::differential
