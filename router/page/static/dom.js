// Makes elements. Text is always text: nothing that comes from the cluster is parsed as HTML.

export const byId = (id) => document.getElementById(id);

/** An element with attributes (`on…`: listeners, `class`, `data-…`) and children; null and false children are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

/** Sets the text of an element, only if it differs, so that screen readers are not disturbed. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Replaces the children of `parent` by one element per item, keeping the elements of keys that stay. */
export function keyed(parent, items, key, make, update) {
  const known = parent.known ?? (parent.known = new Map());
  const kept = new Set();
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    kept.add(name);
    let element = known.get(name);
    if (!element) {
      element = make(item);
      known.set(name, element);
    }
    update(element, item);
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
  }
  for (const [name, element] of known) {
    if (!kept.has(name)) {
      element.remove();
      known.delete(name);
    }
  }
}
