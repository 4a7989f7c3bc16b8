#pragma once

#include <functional>
#include <string>
#include <string_view>

/// A child process whose system calls that may change a disk wait at a gate before they are made: whichever library
/// makes them, in whatever thread. (seccomp's user notification; needs no privileges.) For tests that kill a process
/// at each of its calls, or let each of them fail.
namespace lamina::test {

/// A call that is about to be made and concerns a file below the gate's folder.
struct DiskCall {
    std::string call;  ///< As strace names it: "pwrite64", "rename".
    std::string path;  ///< Below the folder; of a rename or link the new name.
    /// Call and path with numbers and digests as '#': calls that do the same to the same kind of file have one label.
    std::string label() const;
    bool writes_bytes() const { return call == "write" || call == "pwrite64"; }
};

struct Verdict {
    enum class Kind {
        go,
        kill,        ///< The process is killed (SIGKILL) instead.
        tear,        ///< Half of the bytes are written, then it is killed. As kill where nothing is written.
        fail,        ///< The call is not made and returns error_number.
        write_less,  ///< Half of the bytes are written, and the call says so. As go where that cannot be.
    };
    Kind kind = Kind::go;
    int error_number = 0;
};
using Judge = std::function<Verdict(const DiskCall&)>;

struct GateResult {
    bool was_killed = false;
    std::string text;  ///< What the work returned; what ended it when it threw.
};

/// Why no gate can be made here; empty: it can.
std::string why_no_gate();

/// Runs `work` in a forked child; `judge` is asked here about each of its calls. The caller has one thread. Calls that
/// change files without a call that could be seen (writable mappings, io_uring) are seen when they are set up.
GateResult run_gated(const std::string& folder, const Judge& judge, const std::function<std::string()>& work);

/// In the child: from now on no call waits. For the looks at what a failure has left.
void open_gate();

}  // namespace lamina::test
