#pragma once

#include "store/byte_stream.h"
#include "store/oci.h"
#include "store/registry_session.h"

#include <cstdint>
#include <memory>
#include <stop_token>
#include <vector>

namespace lamina::store {

/// Where a blob may be had: the first place first.
using RegistryPlaces = std::vector<std::shared_ptr<RegistrySession>>;

/// All bytes of a blob, not checked against its digest. A large one is read in pieces of 2 MiB, four at a time on
/// connections of their own, where the registry knows ranges; else in one stream, which after a break goes on at the
/// same byte. A place that fails for good, or sends what was not asked for, makes room for the next. Ends at the blob's
/// size, not before: what the last place failed with is thrown.
std::unique_ptr<ByteSource> open_registry_blob(const RegistryPlaces& places, const oci::Descriptor& blob,
                                               const std::stop_token& stop);

/// A part of a blob, and how it comes.
class RegistryRange : public ByteSource {
public:
    virtual const RegistryReference& place() const = 0;  ///< Where its bytes come from now.
    virtual std::uint64_t failures() const = 0;          ///< Tries so far that another one followed.
};

/// The same of a part of a blob, in one stream. What follows its bytes is seen by read_to_end().
std::unique_ptr<RegistryRange> open_registry_range(const RegistryPlaces& places, const oci::Descriptor& blob,
                                                   const ByteRange& range, const std::stop_token& stop);
/// After the last byte: corrupt when another one follows. Leaves the connection in order.
void read_to_end(ByteSource& range);

/// A part of a blob, whole, likewise from the first place that gives it.
std::vector<std::byte> read_registry_range(const RegistryPlaces& places, const oci::Descriptor& blob,
                                           const ByteRange& range, const std::stop_token& stop);

}  // namespace lamina::store
