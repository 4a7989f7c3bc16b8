// The compiled part of Boost.JSON, which needs no library that way. Alone in this file: another static library that
// does the same can then be linked beside this one, because the linker takes the first of two equal members only.
#include <boost/json/src.hpp>
