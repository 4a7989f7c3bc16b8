#pragma once

#include "e2e/differential/program.h"
#include "store/file.h"

#include <sys/types.h>

#include <cstddef>
#include <string>
#include <string_view>

namespace lamina::test::differential {

inline constexpr std::string_view kNoAnswer = "no answer";

/// A process of its own that makes one actor's calls, in a folder that is its root. Ended, if need be by force, when
/// destroyed.
class ActorProcess {
public:
    /// `folder` becomes the root folder; `uid` 0: stays root. `program` must outlive it.
    ActorProcess(const Program& program, const std::string& folder, std::uint32_t uid);
    ~ActorProcess();
    ActorProcess(const ActorProcess&) = delete;
    ActorProcess& operator=(const ActorProcess&) = delete;

    void begin(std::size_t call_index);
    std::string answer();  ///< Of what was begun. kNoAnswer when it takes too long, or the process ended.

private:
    store::UniqueFd channel_;
    pid_t child_ = 0;
};

}  // namespace lamina::test::differential
