#pragma once

#include "client/container_user.h"

#include <boost/json.hpp>

#include <cstdint>
#include <string>

namespace lamina::client {

/// What a bundle's config.json says beside what the image says.
struct RuntimeChoices {
    bool is_read_only = false;
    /// For a runtime that an ordinary user starts: a user namespace in which `host_uid` and `host_gid` are root, no
    /// network namespace, nothing that needs privileges.
    bool is_rootless = false;
    std::uint32_t host_uid = 0;
    std::uint32_t host_gid = 0;
};

/// The config.json of an OCI runtime bundle (runtime-spec 1.0, config.md) whose root filesystem is "rootfs", from an
/// image's config (image-spec 1.0, config.md, and conversion.md for the annotations), with the members, in content,
/// that `umoci unpack` writes: a program of few capabilities without new privileges, a network of its own, volumes as
/// empty tmpfs. A relative working folder or volume is taken from the root. FailureError "malformed", "not_found".
boost::json::object runtime_config(const boost::json::value& image_config, const UserFiles& files,
                                   const RuntimeChoices& choices);

}  // namespace lamina::client
