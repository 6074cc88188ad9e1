// Keys: / goes to the search, arrows left and right to the neighbouring page or record, enter opens the first record,
// escape leaves a record. Everything else works without this file.
"use strict";

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const target = event.target;
  const typing = target.matches("input, select, textarea, video");
  if (event.key === "Escape" && typing && !target.matches("video")) {
    target.blur();
    return;
  }
  if (typing) return;
  const follow = (selector) => {
    const link = document.querySelector(selector);
    if (link) {
      event.preventDefault();
      link.click();
    }
  };
  if (event.key === "/") {
    const search = document.getElementById("search");
    if (search) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  } else if (event.key === "ArrowLeft") {
    follow("a[rel=prev]");
  } else if (event.key === "ArrowRight") {
    follow("a[rel=next]");
  } else if (event.key === "Escape") {
    follow("a[rel=up]");
  } else if (event.key === "Enter" && !target.closest("a, button, summary")) {
    follow("a.open");
  }
});

// Fields that ask for nothing stay out of the address.
document.addEventListener("submit", (event) => {
  for (const field of event.target.elements) {
    if (field.name && !field.value && !field.required) field.disabled = true;
  }
});
window.addEventListener("pageshow", () => {
  for (const field of document.querySelectorAll("form :disabled")) field.disabled = false;
});
