#pragma once

#include "store/digest.h"

#include <optional>
#include <string>
#include <string_view>

namespace lamina::store {

/// An image name as people type it: [REGISTRY/]REPOSITORY[:TAG]; ":latest" is added where there is no tag.
/// Short names stay short ("debian:12" is not expanded). Names follow the OCI distribution-spec grammar.
class ImageName {
public:
    static ImageName parse(std::string_view text);              ///< malformed, saying which rule.
    const std::string& text() const noexcept { return text_; }  ///< With tag.
    auto operator<=>(const ImageName&) const = default;

private:
    explicit ImageName(std::string text) : text_(std::move(text)) {}
    std::string text_;
};

/// A name of an image without its tag; empty for what is a digest, or nothing.
std::string repository_of(std::string_view name);

/// How a command names an image of the store: by name, or by the digest of its manifest or config, whole or at least 6
/// hex digits of it, with or without "sha256:".
struct ImageReference {
    std::optional<ImageName> name;  ///< Tried first.
    std::string digest_prefix_hex;  ///< Empty when it can't be one.
    static ImageReference parse(std::string_view text);
};

}  // namespace lamina::store
