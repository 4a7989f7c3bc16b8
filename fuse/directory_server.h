#pragma once

#include "fuse/mount_options.h"

#include <functional>
#include <memory>

namespace lamina::unionfs {

/// Serves one mount of folders (ServerOptions::stack) until it is unmounted, or by SIGTERM or SIGINT. Nothing is kept
/// beside the upper folder; when this returns, all of it is there, and another may mount it. `on_ready` is called when
/// the mount serves requests. Throws store::Error, one line, when it cannot start; then nothing is mounted.
///
/// Two parts, because paths are relative to where the caller is and messages are for him: begin, then serve. Call both
/// from the only thread of the process.
class DirectoryServer {
public:
    explicit DirectoryServer(const ServerOptions& options);
    ~DirectoryServer();
    DirectoryServer(const DirectoryServer&) = delete;
    DirectoryServer& operator=(const DirectoryServer&) = delete;
    void serve(const std::function<void()>& on_ready);

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::unionfs
