#pragma once

#include "e2e/differential/program.h"
#include "e2e/differential/sides.h"

#include <functional>
#include <string>
#include <vector>

namespace lamina::test::differential {

/// Told of each call and its two answers. Empty: nobody is told.
using Trace = std::function<void(const Call& call, const std::string& reference, const std::string& ours)>;

/// Runs programs on folders of a local file system below `reference` (which must be empty) and on one mount; each one's
/// answers, its attributes after each call if it is watched, and all that it left, live, after a remount and in the
/// other view. Returns what differed first, one text for each program, empty where nothing did.
std::vector<std::string> run_batch(const std::vector<Program>& programs, const std::string& reference,
                                   const SideMaker& make_side, const Trace& trace = {});

/// The smallest program that still fails when it runs alone; nullopt when it does not fail alone.
struct Shrunk {
    Program program;
    std::string difference;
    bool fails = false;
};
Shrunk shrink(Program program, const std::function<std::string(const Program&)>& run);

}  // namespace lamina::test::differential
