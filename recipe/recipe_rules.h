// What must hold between keys of a recipe, once each is right by itself.
#pragma once

#include "recipe/fields.h"
#include "recipe/recipe.h"

namespace stillhouse {

// Adds what does not fit to `report`, placed at the key that has to change.
void CheckRules(const Recipe& recipe, Report& report);

}  // namespace stillhouse
