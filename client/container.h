#pragma once

#include "client/api.h"
#include "client/owned_fd.h"

#include <string>

namespace lamina::client {

/// What `lamina run` makes for one container, and takes away again: <runtime folder>/lamina/containers/<id>, with the
/// bundle, the runtime's own state and a lock that says that the client lives; and the mount of the same name.
///
/// A client that was killed leaves all of it behind; the next Container takes it away, the container too if it runs.
class Container {
public:
    /// `runtime`: an OCI runtime with runc's command line. Throws api::FailureError.
    Container(api::Places places, std::string runtime);
    ~Container();
    Container(const Container&) = delete;
    Container& operator=(const Container&) = delete;

    const std::string& id() const noexcept { return id_; }  ///< Also the mount's name.
    std::string bundle() const { return folder_ + "/bundle"; }
    std::string root_folder() const { return bundle() + "/rootfs"; }  ///< Where the mount belongs; exists.

    /// Runs the bundle in the foreground, with this process' standard files. Signals that this process gets go to the
    /// runtime, which passes them on. Returns the exit status, 128 + N when a signal ended it.
    int run();

private:
    api::Places places_;
    std::string runtime_;
    std::string id_;
    std::string folder_;
    OwnedFd lock_;
};

/// The runtime to use: `chosen`, else $LAMINA_RUNTIME, else runc or crun, where they are installed. "unavailable".
std::string find_runtime(const std::string& chosen);

/// Holds SIGINT, SIGTERM and the like back while it lives, so that nothing is left half-made.
class HeldSignals {
public:
    HeldSignals();
    /// Throws FailureError "cancelled" when one came.
    static void check();
};

}  // namespace lamina::client
