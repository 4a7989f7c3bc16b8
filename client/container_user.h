#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lamina::client {

/// What a container's process runs as.
struct ContainerUser {
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::vector<std::uint32_t> groups;  ///< Further ones: of the groups that list the user, unless a group was named.
    std::string home;                   ///< Empty: not known.
};

/// The texts of a root filesystem's /etc/passwd and /etc/group; empty where there are none.
struct UserFiles {
    std::string passwd;
    std::string group;
};

/// Reads them below `rootfs`; links in it lead to where they lead inside a container. What is no regular file, or
/// longer than 4 MiB, throws api::FailureError "malformed".
UserFiles read_user_files(const std::string& rootfs);

/// The user that `spec` names (OCI image-spec, config.md, "User"): user, uid, user:group, uid:gid, uid:group, user:gid,
/// or nothing, which is uid 0. Numbers need not stand in the files. FailureError "not_found", "malformed".
ContainerUser find_user(std::string_view spec, const UserFiles& files);

}  // namespace lamina::client
